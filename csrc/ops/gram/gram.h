// Gram matrix of a batch of feature maps.
//   forward   G = scale F F^T            F (B, C, L)  G (B, C, C)
//   backward  dF = scale (dG + dG^T) F   dG (B, C, C)  dF (B, C, L)
// One floating-point dtype; 16-bit types are summed in float32. Inputs have any strides, outputs are
// contiguous and overlap no input. Only one triangle of G is computed, the other mirrored: G is exactly
// symmetric. L = 0 gives 0.
#pragma once

#include "core/tensor_view.h"

namespace fastnn {

struct GramKernels {
  void (*forward)(const TensorView& f, double scale, const TensorView& g);
  void (*backward)(const TensorView& dg, const TensorView& f, double scale, const TensorView& df);
};

namespace FASTNN_ISA {
GramKernels gram_kernels();
}

}  // namespace fastnn
