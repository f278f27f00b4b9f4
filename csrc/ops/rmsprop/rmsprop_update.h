// The RMSprop update of one element, or of one vector of elements: the arithmetic shared by all devices.
#pragma once

#include "core/host_device.h"
#include "core/product.h"
#include "ops/rmsprop/rmsprop.h"

#if !defined(__CUDACC__)
#include "core/simd.h"  // sqrt of a vector
#endif

namespace fastnn::FASTNN_ISA {

// Constants common to the elements of a group, in the type of the arithmetic. The scalars are computed in
// double and rounded once.
template <class S>
struct RmspropConstants {
  S grad_scale;  // of the gradient; negative to maximize
  S l2;
  S alpha;
  S one_minus_alpha;
  S eps;
  S momentum;
  S negative_lr;
};

template <class S>
FASTNN_HOST_DEVICE RmspropConstants<S> rmsprop_constants(const RmspropOptions& o) {
  return {static_cast<S>(o.maximize ? -o.grad_scale : o.grad_scale),
          static_cast<S>(o.l2),
          static_cast<S>(o.alpha),
          static_cast<S>(1 - o.alpha),
          static_cast<S>(o.eps),
          static_cast<S>(o.momentum),
          static_cast<S>(-o.lr)};
}

// V is a scalar or a vector, S its scalar. `buffer` is touched with momentum only, `mean` only if it is
// centered. NaN and infinity propagate as in torch's own formulas: hence the two forms of the
// interpolation and the test of l2 (0 * inf is NaN).
template <bool kMomentum, bool kCentered, class V, class S>
FASTNN_HOST_DEVICE void rmsprop_update(V& p, V g, V& square, V& buffer, V& mean,
                                       const RmspropConstants<S>& c) {
  g = product(g, c.grad_scale);
  if (c.l2 != 0) g = g + p * c.l2;
  square = square * c.alpha + product(g * c.one_minus_alpha, g);
  V variance = square;
  if (kCentered) {
    const V change = g - mean;
    mean = c.one_minus_alpha < S(0.5) ? mean + change * c.one_minus_alpha : g - change * c.alpha;
    variance = square - mean * mean;
  }
  const V denom = sqrt(variance) + c.eps;
  if (kMomentum) {
    buffer = buffer * c.momentum + g / denom;
    p = p + buffer * c.negative_lr;
  } else {
    p = p + g * c.negative_lr / denom;
  }
}

}  // namespace fastnn::FASTNN_ISA
