// The Adagrad update of one element, or of one vector of elements: the arithmetic shared by all devices.
#pragma once

#include "core/host_device.h"
#include "core/product.h"
#include "ops/adagrad/adagrad.h"

#if !defined(__CUDACC__)
#include "core/simd.h"  // sqrt of a vector
#endif

namespace fastnn::FASTNN_ISA {

// Constants common to the elements of one tensor, in the type of the arithmetic. The scalars are computed in
// double and rounded once.
template <class S>
struct AdagradConstants {
  S grad_scale;  // of the gradient; negative to maximize
  S l2;
  S eps;
  S negative_step;  // -lr / (1 + (t - 1) * lr_decay)
};

template <class S>
FASTNN_HOST_DEVICE AdagradConstants<S> adagrad_constants(const AdagradOptions& o, double step) {
  return {static_cast<S>(o.maximize ? -o.grad_scale : o.grad_scale), static_cast<S>(o.l2),
          static_cast<S>(o.eps), static_cast<S>(-(o.lr / (1 + (step - 1) * o.lr_decay)))};
}

// V is a scalar or a vector, S its scalar. The test of l2 keeps an infinite parameter from producing a NaN by
// 0 * inf.
template <class V, class S>
FASTNN_HOST_DEVICE void adagrad_update(V& p, V g, V& sum, const AdagradConstants<S>& c) {
  g = product(g, c.grad_scale);
  if (c.l2 != 0) g = g + p * c.l2;
  sum = sum + g * g;
  p = p + g * c.negative_step / (sqrt(sum) + c.eps);
}

}  // namespace fastnn::FASTNN_ISA
