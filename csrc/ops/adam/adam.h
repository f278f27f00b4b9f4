// Adam and AdamW, the update of many tensors at once. For every element, in step t:
//   g    = grad_scale * grad, or its negative to maximize
//   g   += weight_decay * p  (Adam), or p *= 1 - lr * weight_decay  (AdamW)
//   m    = beta1 * m + (1 - beta1) * g
//   v    = beta2 * v + (1 - beta2) * g * g
//   d    = v, or under amsgrad the largest v so far
//   p   -= lr / (1 - beta1^t) * m / (sqrt(d) / sqrt(1 - beta2^t) + eps)
// 16-bit types are computed in float32 and rounded once, when they are stored.
#pragma once

#include "ops/optim/multi_tensor.h"

namespace fastnn {

// state: m, v, and under amsgrad the largest v
struct AdamTensor : OptimizerTensor {
  double step;         // t, if it is not counted on the device
  double step_size;    // lr / (1 - beta1^t)
  double denom_scale;  // 1 / sqrt(1 - beta2^t)
};

struct AdamOptions {
  double lr;
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
  bool decoupled;  // AdamW's weight decay
  double grad_scale = 1;
  bool maximize;
  bool amsgrad;
};

struct AdamKernels {
  void (*update)(AdamTensor* tensors, int64_t count, const AdamOptions& options);
  // The elements [begin, end) of one tensor, by the calling thread only.
  void (*update_range)(const AdamTensor& tensor, const AdamOptions& options, int64_t begin, int64_t end);
};

namespace FASTNN_ISA {
AdamKernels adam_kernels();
}

}  // namespace fastnn
