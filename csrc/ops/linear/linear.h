// Linear layer with bias and activation.
//   forward   z = x W^T + b    y = act(z)               x (M, K)  W (N, K)  b (N)  y, z (M, N)
//   backward  g = act'(z) dY                            dY (M, N)
//             dX = g W (M, K)    dW = g^T x (N, K)    db = column sums of g (N)
// All tensors have one floating-point dtype; 16-bit types are summed in float32. Inputs have any strides,
// outputs are contiguous and overlap no input. K = 0 gives y = act(b). On processors with AVX512_BF16
// subnormal bfloat16 inputs are flushed to zero (core/simd.h: add_products).
#pragma once

#include "core/activation/activation.h"
#include "core/tensor_view.h"

namespace fastnn {

// Inputs and outputs of a backward. `saved` is z if from_preactivation(activation), else y; null without
// activation. If x is itself the output of a layer with an activation, `below_saved` (M, K) and
// `below_activation` make dX the gradient in that layer's z, with no pass over it. A null dx, dw or db is not
// computed; x is needed for dw, weight for dx.
struct LinearGradients {
  const TensorView& dy;
  const TensorView* saved;
  Activation activation;
  const TensorView* x;
  const TensorView* weight;
  const TensorView* below_saved;
  Activation below_activation;
  const TensorView* dx;
  const TensorView* dw;
  const TensorView* db;
};

struct LinearKernels {
  // bias may be null, and so may z, which only an activation with from_preactivation writes.
  void (*forward)(const TensorView& x, const TensorView& weight, const TensorView* bias,
                  Activation activation, const TensorView& y, const TensorView* z);
  void (*backward)(const LinearGradients& gradients);
};

namespace FASTNN_ISA {
LinearKernels linear_kernels();
}

}  // namespace fastnn
