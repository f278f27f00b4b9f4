// The formulas of cross_entropy.h for one row, or for a vector of rows: the arithmetic shared by all devices.
#pragma once

#include "core/host_device.h"

namespace fastnn::FASTNN_ISA {

// The factors of a call, from the number of rows that count and the sum of their weights.
struct CrossEntropyScales {
  double square;    // of the z-loss
  double gradient;  // of a row's gradient as the kernel writes it
  double z;         // 2 z over the rows that count, in units of `gradient`
  double late;      // what the gradient must still be multiplied by
};

// float16 gradients are divided late, because the division would flush the small ones to zero. But not by a
// weight of 0 or NaN: the gradients of ignored rows stay 0.
FASTNN_HOST_DEVICE CrossEntropyScales cross_entropy_scales(bool mean, bool is_float16, double z_loss,
                                                           double rows, double weight) {
  const double scale = mean ? 1 / weight : 1, square = mean ? 1 / rows : 1;
  const bool late = mean && is_float16 && scale - scale == 0;
  const double z = z_loss == 0 ? 0 : 2 * z_loss * square / (late ? scale : 1);
  return {square, late ? 1 : scale, z, late ? scale : 1};
}

// q_k of a class: t its probability, w its weight.
template <class V, class W, class S>
FASTNN_HOST_DEVICE V smoothed_probability(V t, W w, S keep, S smooth) {
  return (t * keep + smooth) * w;
}

// What a class adds to the loss of its row: gap = largest - x_k, total = sum_k exp(x_k - largest). For an
// infinite weight it is infinite, as in torch.
template <class V, class Q>
FASTNN_HOST_DEVICE V class_loss(Q q, V gap, V log_total) {
  return q * (gap + log_total);
}

// The sum of that over all classes, when log_total is known only afterwards: pulls = sum_k q_k, distance =
// sum_k q_k gap, which is NaN if a weight is infinite.
template <class V>
FASTNN_HOST_DEVICE V row_loss(V pulls, V log_total, V distance) {
  return pulls * log_total + distance;
}

// The factor of exp(x_k - largest) in the gradient.
template <class V, class S>
FASTNN_HOST_DEVICE V softmax_factor(V pulls, V lse, V total, S gradient_scale, S z_scale) {
  return (pulls * gradient_scale + z_scale * lse) / total;
}

}  // namespace fastnn::FASTNN_ISA
