// The SGD update of one element, or of one vector of elements: the arithmetic shared by all devices.
#pragma once

#include "core/host_device.h"
#include "core/product.h"
#include "ops/sgd/sgd.h"

namespace fastnn::FASTNN_ISA {

// Constants common to the elements of a group, in the type of the arithmetic. The scalars are computed in
// double and rounded once.
template <class S>
struct SgdConstants {
  S grad_scale;  // of the gradient; negative to maximize
  S l2;
  S momentum;
  S undampened;  // 1 - dampening
  S negative_lr;
  bool nesterov;
};

template <class S>
FASTNN_HOST_DEVICE SgdConstants<S> sgd_constants(const SgdOptions& o) {
  return {static_cast<S>(o.maximize ? -o.grad_scale : o.grad_scale),
          static_cast<S>(o.l2),
          static_cast<S>(o.momentum),
          static_cast<S>(1 - o.dampening),
          static_cast<S>(-o.lr),
          o.nesterov};
}

enum class SgdBuffer { none, first, running };

// V is a scalar or a vector, S its scalar. `buffer` is only written at the first step and not touched without
// momentum. The test of l2 keeps an infinite parameter from producing a NaN by 0 * inf.
template <SgdBuffer kBuffer, class V, class S>
FASTNN_HOST_DEVICE void sgd_update(V& p, V g, V& buffer, const SgdConstants<S>& c) {
  g = product(g, c.grad_scale);
  if (c.l2 != 0) g = g + p * c.l2;
  if (kBuffer != SgdBuffer::none) {
    buffer = kBuffer == SgdBuffer::first ? g : buffer * c.momentum + product(g, c.undampened);
    g = c.nesterov ? g + buffer * c.momentum : buffer;
  }
  p = p + g * c.negative_lr;
}

}  // namespace fastnn::FASTNN_ISA
