// Activations and their gradients for one value, or for one vector of values: the arithmetic shared by all
// devices.
// Include it through activation_vec.h or activation_scalar.h, which have the functions that it is made of.
//
// Values are those of torch's formulas, NaN and infinities included, except that gelu(inf) = inf. Errors are
// at most these, which tests/ops/test_activation_bounds.py checks, where y = z P(z) for the last three and
// m = min(z, 0): rounding z itself moves their left tail by as much.
//          relu   sigmoid    tanh          gelu, gelu_tanh, silu
//   value  exact  2 eps |y|  0.75 eps |y|  4 eps (1 + m^2) |y|
//   slope  exact  4 eps |y|  eps           4 eps (1 + m^2) (P(z) + |z P'(z)|)
// Slopes of sigmoid and tanh are no more accurate because they come from the rounded y. That of silu in
// (-14, -3) has an error of 2.5 eps of itself. CUDA's own tanh has 2 eps |y|, and so the slope 4 eps. In the
// left tail values and slopes below e^-80 (float; double e^-700) may be 0, because a factor underflows. The
// slope of gelu_tanh is NaN where z^2 overflows, as in torch.
#pragma once

#include "core/activation/activation.h"
#include "core/host_device.h"

namespace fastnn::FASTNN_ISA {

// The type of one value of V.
template <class V>
struct LaneOf {
  using type = V;
};

// gelu_tanh(z) = z sigmoid(w) with w = z (kLinear + kCubic z^2), because (1 + tanh(u)) / 2 = sigmoid(2 u).
template <class S>
struct GeluTanh {
  static constexpr S kLinear = S(1.59576912160573071176);  // 2 sqrt(2 / pi)
  static constexpr S kCubic = S(1.59576912160573071176 * 0.044715);
};
template <class V>
FASTNN_HOST_DEVICE V gelu_tanh_argument(V z) {
  using G = GeluTanh<typename LaneOf<V>::type>;
  return z * (z * z * G::kCubic + G::kLinear);
}

template <Activation A, class V>
FASTNN_HOST_DEVICE V activate(V z) {
  using S = typename LaneOf<V>::type;
  if constexpr (A == Activation::relu)
    return z < 0 ? V{} : z;
  else if constexpr (A == Activation::sigmoid)
    return sigmoid(z);
  else if constexpr (A == Activation::tanh)
    return tanh(z);
  else if constexpr (A == Activation::gelu)
    return z * normal_cdf(z);
  else if constexpr (A == Activation::gelu_tanh)
    return z / (exp(-gelu_tanh_argument(z)) + S(1));
  else if constexpr (A == Activation::silu)
    return z / (exp(-z) + S(1));
  else
    return z;
}

// The gradient in z, given that in y = act(z); `saved` is z if from_preactivation(A), else y. ReLU
// compares with <= so that the gradient passes if y is NaN.
template <Activation A, class V>
FASTNN_HOST_DEVICE V activation_gradient(V dy, V saved) {
  using S = typename LaneOf<V>::type;
  if constexpr (A == Activation::relu) {
    return saved <= 0 ? V{} : dy;
  } else if constexpr (A == Activation::sigmoid) {
    return dy * (S(1) - saved) * saved;
  } else if constexpr (A == Activation::tanh) {
    return dy * (S(1) - saved * saved);
  } else if constexpr (A == Activation::gelu) {
    V density;
    const V cdf = normal_cdf(saved, density);
    return dy * (cdf + saved * density);
  } else if constexpr (A == Activation::gelu_tanh) {
    using G = GeluTanh<S>;
    V rest;  // 1 - s
    const V s = sigmoid(gelu_tanh_argument(saved), rest);
    const V slope = saved * saved * (S(3) * G::kCubic) + G::kLinear;
    return dy * (s + saved * (s * rest) * slope);
  } else if constexpr (A == Activation::silu) {
    V rest;
    const V s = sigmoid(saved, rest);
    return dy * s * (S(1) + saved * rest);
  } else {
    return dy;
  }
}

template <Activation A>
struct ActivationTag {
  static constexpr Activation value = A;
};

// Calls a generic lambda with the tag of an activation, so that its body is compiled for each.
template <class Body>
FASTNN_HOST_DEVICE void dispatch_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::none:
      return body(ActivationTag<Activation::none>{});
    case Activation::relu:
      return body(ActivationTag<Activation::relu>{});
    case Activation::sigmoid:
      return body(ActivationTag<Activation::sigmoid>{});
    case Activation::tanh:
      return body(ActivationTag<Activation::tanh>{});
    case Activation::gelu:
      return body(ActivationTag<Activation::gelu>{});
    case Activation::gelu_tanh:
      return body(ActivationTag<Activation::gelu_tanh>{});
    case Activation::silu:
      return body(ActivationTag<Activation::silu>{});
  }
}

}  // namespace fastnn::FASTNN_ISA
