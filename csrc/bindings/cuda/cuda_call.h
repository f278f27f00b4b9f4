// One call of a CUDA op: the device that its tensors are on, made current, and torch's stream there.
//
// How an op gets its CUDA side:
//   csrc/ops/<op>/<op>_cuda.h    launchers in namespace fastnn::cuda: raw pointers, sizes and a cudaStream_t
//   csrc/ops/<op>/<op>.cu        kernels above, launchers below, on csrc/core/cuda; launch() is the way to
//                                launch, nothing waits for the device and nothing allocates there; what
//                                is not C++ goes into core/cuda/ptx.cuh, and tests/cuda_emulator/ runs
//                                all of it on the CPU
//   csrc/bindings/<op>_args.h    the checks of its arguments, shared with the binding of the CPU
//   csrc/bindings/cuda/<op>.cpp  checks, CudaCall, launcher; its register_<op> in cuda_module.cpp
//   python/fastnn/ops/<op>.py    `cuda="<op>"` in the call of _dispatch, _dispatch.native(tensor) for the
//                                kernel
//   python/fastnn/selftest/      its tests under that name: on a GPU it runs only after they have passed
// Arithmetic common to both devices goes into a header of FASTNN_HOST_DEVICE functions, which the tests of
// the CPU then cover. Scratch memory is a tensor that Python made: torch's allocator knows the stream it is
// used on.
#pragma once

#include <initializer_list>

#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/cuda/device.h"

namespace fastnn {

// The one device of all tensors; null pointers are skipped. Throws RuntimeError if they are not on one.
inline int common_device(const char* op, std::initializer_list<const TensorView*> tensors) {
  int device = TensorView::kNoCudaDevice;
  for (const TensorView* t : tensors) {
    if (!t) continue;
    check(t->cuda_device != TensorView::kNoCudaDevice, op, ": a CUDA kernel was given a tensor on the CPU");
    check(device == TensorView::kNoCudaDevice || device == t->cuda_device, op, ": tensors on cuda:", device,
          " and cuda:", t->cuda_device, ", expected one device");
    device = t->cuda_device;
  }
  return device;
}

// torch's current stream of a device.
cudaStream_t current_stream(int device);

class CudaCall {
 public:
  CudaCall(const char* op, std::initializer_list<const TensorView*> tensors)
      : CudaCall(common_device(op, tensors)) {}
  explicit CudaCall(int device) : guard_(device), stream_(current_stream(device)) {}

  cudaStream_t stream() const { return stream_; }

 private:
  cuda::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace fastnn
