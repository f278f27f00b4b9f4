#include "ops/relu/relu.h"

#include "bindings/registration.h"
#include "bindings/relu_args.h"
#include "bindings/tensor_caster.h"
#include "core/huge_pages.h"
#include "dispatch/cpu_dispatch.h"

namespace fastnn {

namespace {

void relu_forward(const TensorView& x, const TensorView& y) {
  check_relu_forward(x, y);
  prefer_huge_pages({&y});
  const KernelCall call(x.numel());
  cpu_kernels().relu.forward(x.dtype, x.data, y.data, x.numel());
}

void relu_backward(const TensorView& dy, const TensorView& y, const TensorView& dx) {
  check_relu_backward(dy, y, dx);
  prefer_huge_pages({&dx});
  const KernelCall call(dy.numel());
  cpu_kernels().relu.backward(dy.dtype, dy.data, y.data, dx.data, dy.numel());
}

}  // namespace

void register_relu(pybind11::module_& m) {
  m.def("relu_forward", &relu_forward);
  m.def("relu_backward", &relu_backward);
}

}  // namespace fastnn
