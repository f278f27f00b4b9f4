// Clipping of the global norm: all gradients of one dtype together, as one vector g.
//   norm  = sqrt(sum of g^2), the squares and their sum in double, rounded once to the dtype of g
//   g    *= min(1, max_norm / (norm + 1e-6))
// The factor is computed in the dtype of g, one rounding per operation (clip_rule.h). A norm that is not
// finite makes it 0 or NaN, following the arithmetic; if it is 1, nothing is written.
#pragma once

#include "ops/optim/multi_tensor.h"

namespace fastnn {

struct ClipOptions {
  double max_norm;
  bool only_finite;  // write no gradient if the norm is not finite
};

struct ClipKernels {
  // The gradients are dense and share no memory; param and grad of a tensor are both the gradient. `norm` is
  // one element of its dtype. Returns false if only_finite has prevented all writes.
  bool (*clip)(OptimizerTensor* tensors, int64_t count, const ClipOptions& options, void* norm);
};

namespace FASTNN_ISA {
ClipKernels clip_kernels();
}

}  // namespace fastnn
