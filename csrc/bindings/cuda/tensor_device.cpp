#include "bindings/tensor_device.h"

#include "bindings/cuda/cuda_call.h"
#include "bindings/kept.h"
#include "core/check.h"

namespace py = pybind11;

namespace fastnn {

const char* const kKernelsOf = "CUDA";
const bool kHasDevice = true;

bool read_device(const dlpack::Device& from, TensorView& view) {
  if (from.type == dlpack::kCuda) view.cuda_device = static_cast<int16_t>(from.id);
  return from.type == dlpack::kCuda || from.type == dlpack::kCpu;
}

bool host_can_read(const TensorView& view) { return view.cuda_device == TensorView::kNoCudaDevice; }

void before_reading() {}  // nothing here runs on threads of the CPU

cudaStream_t current_stream(int device) {
  static TorchAttribute tensor("torch", "Tensor");
  const dlpack::ExchangeApi* const api = exchange_api(tensor.as_type());
  check(api, "fastnn: this torch has no DLPack exchange interface");
  void* stream = nullptr;
  if (api->current_work_stream(dlpack::kCuda, device, &stream) != 0) throw py::error_already_set();
  return static_cast<cudaStream_t>(stream);
}

}  // namespace fastnn
