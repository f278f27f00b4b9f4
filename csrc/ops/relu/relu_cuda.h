// ReLU on CUDA: the formulas and rules of relu.h, on the current device, in the order of `stream`.
#pragma once

#include <cuda_runtime_api.h>

#include "core/dtype.h"

namespace fastnn::cuda {

void relu_forward(DType dtype, const void* x, void* y, int64_t n, cudaStream_t stream);
void relu_backward(DType dtype, const void* dy, const void* y, void* dx, int64_t n, cudaStream_t stream);

}  // namespace fastnn::cuda
