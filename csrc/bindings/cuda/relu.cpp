#include "bindings/cuda/cuda_call.h"
#include "bindings/cuda/registration.h"
#include "bindings/relu_args.h"
#include "ops/relu/relu_cuda.h"

namespace fastnn::cuda {

namespace {

void checked_relu_forward(const TensorView& x, const TensorView& y) {
  check_relu_forward(x, y);
  const CudaCall call("relu", {&x, &y});
  relu_forward(x.dtype, x.data, y.data, x.numel(), call.stream());
}

void checked_relu_backward(const TensorView& dy, const TensorView& y, const TensorView& dx) {
  check_relu_backward(dy, y, dx);
  const CudaCall call("relu", {&dy, &y, &dx});
  relu_backward(dy.dtype, dy.data, y.data, dx.data, dy.numel(), call.stream());
}

}  // namespace

void register_relu(pybind11::module_& m) {
  m.def("relu_forward", &checked_relu_forward);
  m.def("relu_backward", &checked_relu_backward);
}

}  // namespace fastnn::cuda
