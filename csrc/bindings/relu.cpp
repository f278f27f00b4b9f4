#include "ops/relu/relu.h"

#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/cpu_dispatch.h"

namespace fastnn {

namespace {

void forward(const TensorView& x, const TensorView& y) {
  check_floating("relu", "input", x);
  check_dtype("relu", "output", y, x.dtype);
  check_same_shape("relu", "output", y, x);
  check_contiguous("relu", "input", x);
  check_contiguous("relu", "output", y);
  const ReleaseGil released(x.numel());
  cpu_kernels().relu.forward(x.dtype, x.data, y.data, x.numel());
}

void backward(const TensorView& dy, const TensorView& y, const TensorView& dx) {
  check_floating("relu", "grad_output", dy);
  check_dtype("relu", "output", y, dy.dtype);
  check_dtype("relu", "grad_input", dx, dy.dtype);
  check_same_shape("relu", "output", y, dy);
  check_same_shape("relu", "grad_input", dx, dy);
  check_contiguous("relu", "grad_output", dy);
  check_contiguous("relu", "output", y);
  check_contiguous("relu", "grad_input", dx);
  const ReleaseGil released(dy.numel());
  cpu_kernels().relu.backward(dy.dtype, dy.data, y.data, dx.data, dy.numel());
}

}  // namespace

void register_relu(pybind11::module_& m) {
  m.def("relu_forward", &forward);
  m.def("relu_backward", &backward);
}

}  // namespace fastnn
