// Replaces csrc/bindings/cuda/tensor_device.cpp: tensors of the CPU are on an emulated device.
#include "bindings/tensor_device.h"

#include "bindings/cuda/cuda_call.h"
#include "scheduler.h"

namespace fastnn {

const char* const kKernelsOf = "emulated CUDA";
const bool kHasDevice = true;

bool read_device(const dlpack::Device& from, TensorView& view) {
  view.cuda_device = cuda_emulator::device_of_tensors();
  return from.type == dlpack::kCpu;
}

bool host_can_read(const TensorView& view) { return !cuda_emulator::is_hidden(view.data); }

void before_reading() {}

cudaStream_t current_stream(int) { return nullptr; }

}  // namespace fastnn
