// The Gram matrix on CUDA: the formulas and rules of gram.h, on the current device, in the order of `stream`.
// Temporary memory of a call comes from `workspace`; if that only counts, the call launches nothing.
#pragma once

#include "core/tensor_view.h"
#include "gemm/cuda/product.h"

namespace fastnn::cuda {

void gram_forward(const TensorView& f, double scale, const TensorView& g, Float32 float32,
                  Workspace& workspace, cudaStream_t stream);
void gram_backward(const TensorView& dg, const TensorView& f, double scale, const TensorView& df,
                   Float32 float32, Workspace& workspace, cudaStream_t stream);

}  // namespace fastnn::cuda
