#include "ops/gram/gram.h"

#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/cpu_dispatch.h"
#include "core/huge_pages.h"

namespace fastnn {

namespace {

void check_square(const char* name, const TensorView& g, const TensorView& f) {
  check_ndim("gram_matrix", name, g, 3);
  check_dtype("gram_matrix", name, g, f.dtype);
  check(g.shape[0] == f.shape[0] && g.shape[1] == f.shape[1] && g.shape[2] == f.shape[1],
        "gram_matrix: ", name, " has shape ", shape_string(g), ", expected (", f.shape[0], ", ", f.shape[1],
        ", ", f.shape[1], ")");
}

void forward(const TensorView& f, double scale, const TensorView& g) {
  check_floating("gram_matrix", "input", f);
  check_ndim("gram_matrix", "input", f, 3);
  check_square("output", g, f);
  check_contiguous("gram_matrix", "output", g);
  prefer_huge_pages({&g});
  const ReleaseGil released(f.numel() * f.shape[1] / 16);
  cpu_kernels().gram.forward(f, scale, g);
}

void backward(const TensorView& dg, const TensorView& f, double scale, const TensorView& df) {
  check_floating("gram_matrix", "input", f);
  check_ndim("gram_matrix", "input", f, 3);
  check_square("grad_output", dg, f);
  check_dtype("gram_matrix", "grad_input", df, f.dtype);
  check_same_shape("gram_matrix", "grad_input", df, f);
  check_contiguous("gram_matrix", "grad_input", df);
  prefer_huge_pages({&df});
  const ReleaseGil released(f.numel() * f.shape[1] / 16);
  cpu_kernels().gram.backward(dg, f, scale, df);
}

}  // namespace

void register_gram(pybind11::module_& m) {
  m.def("gram_forward", &forward);
  m.def("gram_backward", &backward);
}

}  // namespace fastnn
