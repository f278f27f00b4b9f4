#include "ops/linear/linear.h"

#include "bindings/activation_caster.h"
#include "bindings/linear_args.h"
#include "bindings/memory_ranges.h"
#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/huge_pages.h"
#include "dispatch/cpu_dispatch.h"

namespace fastnn {

namespace {

using Optional = std::optional<TensorView>;

void linear_forward(const TensorView& x, const TensorView& weight, const Optional& bias,
                    Activation activation, const TensorView& y, const Optional& z) {
  check_linear_forward(x, weight, pointer(bias), y, pointer(z));
  check_apart("linear", {&y, pointer(z)}, {&x, &weight, pointer(bias)});
  prefer_huge_pages({&y, pointer(z)});
  const KernelCall call(x.shape[0] * weight.shape[0] * x.shape[1] / 16);
  cpu_kernels().linear.forward(x, weight, pointer(bias), activation, y, pointer(z));
}

// `saved` is z if from_preactivation(activation), else y.
void linear_backward(const TensorView& dy, const Optional& saved, Activation activation, const Optional& x,
                     const Optional& weight, const Optional& dx, const Optional& dw, const Optional& db) {
  const LinearGradients gradients = {dy,      pointer(saved),   activation,  pointer(x),  pointer(weight),
                                     nullptr, Activation::none, pointer(dx), pointer(dw), pointer(db)};
  check_linear_backward(gradients);
  check_apart("linear", {pointer(dx), pointer(dw), pointer(db)},
              {&dy, pointer(saved), pointer(x), pointer(weight)});
  prefer_huge_pages({pointer(dx), pointer(dw)});
  const int64_t width = (dx ? dx->shape[1] : 0) + (dw ? dw->shape[1] : 0);
  const KernelCall call(dy.numel() + dy.numel() * width / 16);
  cpu_kernels().linear.backward(gradients);
}

}  // namespace

void register_linear(pybind11::module_& m) {
  m.def("linear_forward", &linear_forward);
  m.def("linear_backward", &linear_backward);
}

}  // namespace fastnn
