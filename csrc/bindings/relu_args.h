// The checks of ReLU's arguments, the same for every device.
#pragma once

#include "bindings/memory_ranges.h"
#include "core/check.h"

namespace fastnn {

inline void check_relu_forward(const TensorView& x, const TensorView& y) {
  check_floating("relu", "input", x);
  check_dtype("relu", "output", y, x.dtype);
  check_same_shape("relu", "output", y, x);
  check_contiguous("relu", "input", x);
  check_contiguous("relu", "output", y);
  if (y.data != x.data) check_apart("relu", {&y}, {&x});  // the same tensor may be both
}

inline void check_relu_backward(const TensorView& dy, const TensorView& y, const TensorView& dx) {
  check_floating("relu", "grad_output", dy);
  check_dtype("relu", "output", y, dy.dtype);
  check_dtype("relu", "grad_input", dx, dy.dtype);
  check_same_shape("relu", "output", y, dy);
  check_same_shape("relu", "grad_input", dx, dy);
  check_contiguous("relu", "grad_output", dy);
  check_contiguous("relu", "output", y);
  check_contiguous("relu", "grad_input", dx);
  for (const TensorView* read : {&dy, &y})
    if (dx.data != read->data) check_apart("relu", {&dx}, {read});
}

}  // namespace fastnn
