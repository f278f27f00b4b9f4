// The linear layer on CUDA: the formulas and rules of linear.h, on the current device, in the order of
// `stream`. Memory that a call needs meanwhile comes from `workspace`; one that counts makes the call launch
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

// dW += dY^T x, and db += the sum of the rows of dY where it is given. Both have the type of the sums.
void linear_add_gradients(const TensorView& dy, const TensorView& x, const TensorView& dw,
                          const TensorView* db, Float32 float32, Workspace& workspace, cudaStream_t stream);

// What is left of forward where another library has put x W^T into y: adds the bias, keeps z, activates.
void linear_finish(const TensorView& y, const TensorView* bias, Activation activation, const TensorView* z,
                   cudaStream_t stream);

// What comes before the products of backward, in one pass over dY: g = act'(z) dY, contiguous, which may be
// null or dY itself, and db, which may be null.
void linear_gradient(const TensorView& dy, const TensorView* saved, Activation activation, void* g, void* db,
                     Workspace& workspace, cudaStream_t stream);

}  // namespace fastnn::cuda
