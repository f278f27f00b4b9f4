// Clipping on CUDA: clip.h on the current device, in the order of `stream`. Whether the norm is finite is
// known on the device only.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/clip/clip.h"

namespace fastnn::cuda {

// How many doubles of scratch memory clip() needs at most, on the current device.
int64_t clip_scratch(int64_t count);

void clip(const OptimizerTensor* tensors, int64_t count, const ClipOptions& options, void* norm,
          double* scratch, cudaStream_t stream);

}  // namespace fastnn::cuda
