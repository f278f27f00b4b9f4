// Softmax cross-entropy of a linear layer's outputs, of which only a chunk of rows is ever in memory.
//   logits z = x W^T + b                                 x (N, K)  W (C, K)  b (C)  z (N, C)
//   loss   = cross_entropy(z), see cross_entropy.h
//   g      = its gradient with respect to z, which is written over z
//   dX = g W (N, K)    dW = g^T x (C, K)    db = column sums of g (C)
// A chunk's logits and their gradient are rounded to the common dtype of x, W and b. Everything else is
// summed over the chunks in the computing type (float32 for 16-bit types, else the dtype), which is also that
// of dX, dW and db.
#pragma once

#include "core/tensor_view.h"
#include "ops/cross_entropy/cross_entropy.h"

namespace fastnn {

struct LinearCrossEntropyArgs {
  TensorView x, weight;  // any strides
  const TensorView* bias;
  // Arguments of the loss: target, class weight, options, and where the losses go. The fields of the
  // logits and of the gradient are filled for each chunk.
  CrossEntropyArgs loss;
  const void* dy;  // (N), factors of the rows' gradients; null: 1
  // Contiguous; null: not wanted. They overlap no input.
  const TensorView *dx, *dw, *db;
  int64_t chunk_rows;  // the most rows of a chunk, at least 1
};

struct LinearCrossEntropyKernels {
  // The first row whose index is out of range (nothing was written then), or -1.
  int64_t (*run)(const LinearCrossEntropyArgs& args);
};

namespace FASTNN_ISA {
LinearCrossEntropyKernels linear_cross_entropy_kernels();
}

}  // namespace fastnn
