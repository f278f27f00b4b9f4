// The Adam update of one element, or of one vector of elements: the arithmetic shared by all devices.
#pragma once

#include "core/host_device.h"
#include "core/product.h"
#include "ops/adam/adam.h"

#if !defined(__CUDACC__)
#include "core/simd.h"  // sqrt of a vector
#endif

namespace fastnn::FASTNN_ISA {

// Constants common to the elements of one tensor, in the type of the arithmetic. The scalars are computed in
// double and rounded once.
template <class S>
struct AdamConstants {
  S grad_scale;       // of the gradient; negative to maximize
  S l2;               // weight decay that is added to the gradient, else 0
  S decay;            // what decoupled weight decay leaves of the parameter, else 1
  S one_minus_beta1;  // weight of the gradient in the first moment
  S beta1;
  S beta2;
  S one_minus_beta2;
  S denom_scale;  // 1 / sqrt(1 - beta2^t)
  S eps;
  S negative_step;  // -lr / (1 - beta1^t)
};

template <class S>
FASTNN_HOST_DEVICE AdamConstants<S> adam_constants(const AdamOptions& o, double step_size,
                                                   double denom_scale) {
  return {static_cast<S>(o.maximize ? -o.grad_scale : o.grad_scale),
          static_cast<S>(o.decoupled ? 0 : o.weight_decay),
          static_cast<S>(o.decoupled ? 1 - o.lr * o.weight_decay : 1),
          static_cast<S>(1 - o.beta1),
          static_cast<S>(o.beta1),
          static_cast<S>(o.beta2),
          static_cast<S>(1 - o.beta2),
          static_cast<S>(denom_scale),
          static_cast<S>(o.eps),
          static_cast<S>(-step_size)};
}

// V is a scalar or a vector, S its scalar. `vmax` holds the largest v so far and is touched under amsgrad
// only. NaN and infinity propagate as in torch's own formulas: hence the two forms of the
// interpolation, the test of l2 (0 * inf is NaN) and a maximum that keeps the NaN of either side.
template <bool kAmsgrad, class V, class S>
FASTNN_HOST_DEVICE void adam_update(V& p, V g, V& m, V& v, V& vmax, const AdamConstants<S>& c) {
  g = product(g, c.grad_scale);
  p = product(p, c.decay);
  if (c.l2 != 0) g = g + p * c.l2;
  const V change = g - m;
  m = c.one_minus_beta1 < S(0.5) ? m + change * c.one_minus_beta1 : g - change * c.beta1;
  v = v * c.beta2 + product(g * c.one_minus_beta2, g);
  if (kAmsgrad) vmax = ((vmax < v) | (v != v)) ? v : vmax;
  const V denom = sqrt(kAmsgrad ? vmax : v) * c.denom_scale + c.eps;
  p = p + m * c.negative_step / denom;
}

}  // namespace fastnn::FASTNN_ISA
