// The linear layer on CUDA: the formulas and rules of linear.h, on the current device, in the order of
// `stream`. Temporary memory of a call comes from `workspace`; if that only counts, the call launches
// nothing.
#pragma once

#include "gemm/cuda/product.h"
#include "ops/linear/linear.h"

namespace fastnn::cuda {

struct LinearForward {
  const TensorView& x;
  const TensorView& weight;
  const TensorView* bias;
  Activation activation;
  const TensorView& y;
  const TensorView* z;
};

void linear_forward(const LinearForward& args, Float32 float32, Workspace& workspace, cudaStream_t stream);
void linear_backward(const LinearGradients& args, Float32 float32, Workspace& workspace, cudaStream_t stream);

// dW += dY^T x, and db += the sum of the rows of dY if given. Both have the type of the sums.
void linear_add_gradients(const TensorView& dy, const TensorView& x, const TensorView& dw,
                          const TensorView* db, Float32 float32, Workspace& workspace, cudaStream_t stream);

// The rest of forward after another library has stored x W^T in y: adds the bias, stores z, activates.
void linear_finish(const TensorView& y, const TensorView* bias, Activation activation, const TensorView* z,
                   cudaStream_t stream);

// The part of backward before its products, in one pass over dY: g = act'(z) dY, contiguous, which may be
// null or dY itself, and db, which may be null.
void linear_gradient(const TensorView& dy, const TensorView* saved, Activation activation, void* g, void* db,
                     Workspace& workspace, cudaStream_t stream);

}  // namespace fastnn::cuda
