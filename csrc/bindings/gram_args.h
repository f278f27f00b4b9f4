// The checks of the Gram matrix's arguments, the same for every device.
#pragma once

#include "bindings/memory_ranges.h"
#include "core/check.h"

namespace fastnn {

inline void check_gram_square(const char* name, const TensorView& g, const TensorView& f) {
  check_ndim("gram_matrix", name, g, 3);
  check_dtype("gram_matrix", name, g, f.dtype);
  check(g.shape[0] == f.shape[0] && g.shape[1] == f.shape[1] && g.shape[2] == f.shape[1],
        "gram_matrix: ", name, " has shape ", shape_string(g), ", expected (", f.shape[0], ", ", f.shape[1],
        ", ", f.shape[1], ")");
}

inline void check_gram_forward(const TensorView& f, const TensorView& g) {
  check_floating("gram_matrix", "input", f);
  check_ndim("gram_matrix", "input", f, 3);
  check_gram_square("output", g, f);
  check_contiguous("gram_matrix", "output", g);
  check_apart("gram_matrix", {&g}, {&f});
}

inline void check_gram_backward(const TensorView& dg, const TensorView& f, const TensorView& df) {
  check_floating("gram_matrix", "input", f);
  check_ndim("gram_matrix", "input", f, 3);
  check_gram_square("grad_output", dg, f);
  check_dtype("gram_matrix", "grad_input", df, f.dtype);
  check_same_shape("gram_matrix", "grad_input", df, f);
  check_contiguous("gram_matrix", "grad_input", df);
  check_apart("gram_matrix", {&df}, {&dg, &f});
}

}  // namespace fastnn
