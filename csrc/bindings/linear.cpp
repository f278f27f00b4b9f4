#include "ops/linear/linear.h"

#include "bindings/activation_caster.h"
#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/cpu_dispatch.h"
#include "core/huge_pages.h"

namespace fastnn {

namespace {

using Optional = std::optional<TensorView>;

void forward(const TensorView& x, const TensorView& weight, const Optional& bias, Activation activation,
             const TensorView& y, const Optional& z) {
  check_floating("linear", "input", x);
  check_ndim("linear", "input", x, 2);
  check_ndim("linear", "weight", weight, 2);
  check_dtype("linear", "weight", weight, x.dtype);
  check(x.shape[1] == weight.shape[1], "linear: input has K=", x.shape[1], ", weight expects ",
        weight.shape[1]);
  if (bias) check_vector("linear", "bias", *bias, x.dtype, weight.shape[0]);
  check_matrix("linear", "output", y, x.dtype, x.shape[0], weight.shape[0]);
  check_contiguous("linear", "output", y);
  if (z) {
    check_matrix("linear", "preactivation", *z, x.dtype, x.shape[0], weight.shape[0]);
    check_contiguous("linear", "preactivation", *z);
  }
  prefer_huge_pages({&y, pointer(z)});
  const ReleaseGil released(x.shape[0] * weight.shape[0] * x.shape[1] / 16);
  cpu_kernels().linear.forward(x, weight, pointer(bias), activation, y, pointer(z));
}

// `saved` is z where from_preactivation(activation), else y.
void backward(const TensorView& dy, const Optional& saved, Activation activation, const Optional& x,
              const Optional& weight, const Optional& dx, const Optional& dw, const Optional& db) {
  check_floating("linear", "grad_output", dy);
  check_ndim("linear", "grad_output", dy, 2);
  const int64_t m = dy.shape[0], n = dy.shape[1];
  int64_t products = 0;
  if (activation != Activation::none) {
    check(saved.has_value(), "linear: the gradient of an activation needs its output or input");
    check_matrix("linear", from_preactivation(activation) ? "preactivation" : "output", *saved, dy.dtype, m,
                 n);
  }
  if (dx) {
    check(weight.has_value(), "linear: grad_input needs weight");
    check_matrix("linear", "weight", *weight, dy.dtype, n, weight->shape[1]);
    check_matrix("linear", "grad_input", *dx, dy.dtype, m, weight->shape[1]);
    check_contiguous("linear", "grad_input", *dx);
    products += m * n * dx->shape[1];
  }
  if (dw) {
    check(x.has_value(), "linear: grad_weight needs input");
    check_matrix("linear", "input", *x, dy.dtype, m, x->shape[1]);
    check_matrix("linear", "grad_weight", *dw, dy.dtype, n, x->shape[1]);
    check_contiguous("linear", "grad_weight", *dw);
    products += m * n * dw->shape[1];
  }
  if (db) {
    check_vector("linear", "grad_bias", *db, dy.dtype, n);
    check_contiguous("linear", "grad_bias", *db);
  }
  prefer_huge_pages({pointer(dx), pointer(dw)});
  const ReleaseGil released(m * n + products / 16);
  cpu_kernels().linear.backward({dy, pointer(saved), activation, pointer(x), pointer(weight), nullptr,
                                 Activation::none, pointer(dx), pointer(dw), pointer(db)});
}

}  // namespace

void register_linear(pybind11::module_& m) {
  m.def("linear_forward", &forward);
  m.def("linear_backward", &backward);
}

}  // namespace fastnn
