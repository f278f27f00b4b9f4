// Linear layer with bias and ReLU.
//   forward   y = act(x W^T + b)                        x (M, K)  W (N, K)  b (N)  y (M, N)
//   backward  g = dY, or dY masked by y > 0 (ReLU)      dY (M, N)
//             dX = g W (M, K)    dW = g^T x (N, K)    db = column sums of g (N)
// All tensors have one floating-point dtype; 16-bit types are summed in float32. Inputs have any strides,
// outputs are contiguous and overlap no input. K = 0 gives y = act(b). On processors with AVX512_BF16
// subnormal bfloat16 inputs count as 0 (core/simd.h: add_products).
#pragma once

#include "core/tensor_view.h"

namespace fastnn {

struct LinearKernels {
  // bias may be null.
  void (*forward)(const TensorView& x, const TensorView& weight, const TensorView* bias, bool relu,
                  const TensorView& y);
  // y is null without ReLU. A null dx, dw or db is not computed; x is needed for dw, weight for dx.
  void (*backward)(const TensorView& dy, const TensorView* y, const TensorView* x, const TensorView* weight,
                   const TensorView* dx, const TensorView* dw, const TensorView* db);
};

namespace FASTNN_ISA {
LinearKernels linear_kernels();
}

}  // namespace fastnn
