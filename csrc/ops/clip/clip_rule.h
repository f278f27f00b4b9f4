// The factor of clipping: the arithmetic shared by all devices.
#pragma once

#include "core/host_device.h"

namespace fastnn::FASTNN_ISA {

// min(1, max_norm / (norm + 1e-6)), in torch's order: the reciprocal first, and after every step
// stored(x), which rounds to the dtype of the gradients. NaN stays NaN.
template <class S, class Stored>
FASTNN_HOST_DEVICE S clip_factor(S norm, double max_norm, const Stored& stored) {
  const S inverse = stored(S(1) / stored(norm + S(1e-6)));
  const S factor = stored(inverse * static_cast<S>(max_norm));
  return factor > S(1) ? S(1) : factor;
}

template <class S>
FASTNN_HOST_DEVICE bool is_finite(S x) {
  return x - x == 0;
}

}  // namespace fastnn::FASTNN_ISA
