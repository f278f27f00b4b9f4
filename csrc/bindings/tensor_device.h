// What a module reads of a tensor besides its shape: the one part of the caster in which the modules differ.
// csrc/bindings/tensor_device.cpp is fastnn._cpu's, csrc/bindings/cuda/tensor_device.cpp fastnn._cuda's.
#pragma once

#include "bindings/dlpack.h"
#include "core/tensor_view.h"

namespace fastnn {

extern const char* const kKernelsOf;  // "CPU" or "CUDA", for errors

// Records the device of the tensor; false if kernels of this module cannot read it.
bool read_device(const dlpack::Device& from, TensorView& view);

// Whether kernels of this module run on a device of their own, and whether the host may read a tensor.
extern const bool kHasDevice;
bool host_can_read(const TensorView& view);

// Called before a tensor is read.
void before_reading();

}  // namespace fastnn
