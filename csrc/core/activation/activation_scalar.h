// Activations of single values, for kernels that compute one at a time.
#pragma once

#include <cmath>

#include "core/host_device.h"

namespace fastnn::FASTNN_ISA {

FASTNN_HOST_DEVICE float exp(float x) { return ::expf(x); }
FASTNN_HOST_DEVICE double exp(double x) { return ::exp(x); }
FASTNN_HOST_DEVICE float tanh(float x) { return ::tanhf(x); }
FASTNN_HOST_DEVICE double tanh(double x) { return ::tanh(x); }
FASTNN_HOST_DEVICE float erfc(float x) { return ::erfcf(x); }
FASTNN_HOST_DEVICE double erfc(double x) { return ::erfc(x); }

template <class S>
FASTNN_HOST_DEVICE S sigmoid(S x) {
  return S(1) / (exp(-x) + S(1));
}

// `complement` is 1 - sigmoid(x), without cancellation.
template <class S>
FASTNN_HOST_DEVICE S sigmoid(S x, S& complement) {
  const S e = exp(x < 0 ? x : -x);
  const S larger = S(1) / (e + S(1)), smaller = e * larger;
  complement = x < 0 ? larger : smaller;
  return x < 0 ? smaller : larger;
}

// P(Z <= x) for a standard normal Z, and its density at x.
template <class S>
FASTNN_HOST_DEVICE S normal_cdf(S x) {
  constexpr S kSqrtHalf = S(0.70710678118654752440);
  return S(0.5) * erfc(-x * kSqrtHalf);
}
template <class S>
FASTNN_HOST_DEVICE S normal_cdf(S x, S& density) {
  constexpr S kInvSqrt2Pi = S(0.39894228040143267794);
  density = exp(x * x * S(-0.5)) * kInvSqrt2Pi;
  return normal_cdf(x);
}

}  // namespace fastnn::FASTNN_ISA

#include "core/activation/activation_math.h"
