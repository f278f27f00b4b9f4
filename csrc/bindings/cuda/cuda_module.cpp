// fastnn._cuda: the CUDA kernels as Python functions that write into tensors the caller allocated. Importing
// it needs no driver and makes no context.
#include "bindings/cuda/registration.h"
#include "core/cuda/device.h"

PYBIND11_MODULE(_cuda, m) {
  namespace cuda = fastnn::cuda;
  m.attr("compiler") = FASTNN_COMPILER;
  m.attr("architectures") = FASTNN_CUDA_BUILT_FOR;
  m.attr("runtime_version") = CUDART_VERSION;  // 1000 * major + 10 * minor
  m.def("driver_version", &cuda::driver_version);
  m.def("why_unusable", &cuda::why_unusable);
  m.def("compiles_at_launch", &cuda::compiles_at_launch);
  cuda::register_clip(m);
  cuda::register_cross_entropy(m);
  cuda::register_gram(m);
  cuda::register_epoch(m);
  cuda::register_linear(m);
  cuda::register_optimizers(m);
  cuda::register_relu(m);
}
