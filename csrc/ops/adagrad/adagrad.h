// Adagrad, the update of many tensors at once. For every element, in step t:
//   g    = grad_scale * grad, or its negative to maximize; g += weight_decay * p
//   s   += g * g
//   p   -= lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)
// 16-bit types are computed in float32 and rounded once, when they are stored.
#pragma once

#include "ops/optim/multi_tensor.h"

namespace fastnn {

// state: the sum of squares
struct AdagradTensor : OptimizerTensor {
  double step;  // t, if it is not counted on the device
};

struct AdagradOptions {
  double lr;
  double lr_decay;
  double eps;
  double l2;  // weight decay
  bool maximize;
  double grad_scale = 1;
};

struct AdagradKernels {
  void (*update)(AdagradTensor* tensors, int64_t count, const AdagradOptions& options);
  // The elements [begin, end) of one tensor, by the calling thread only.
  void (*update_range)(const AdagradTensor& tensor, const AdagradOptions& options, int64_t begin,
                       int64_t end);
};

namespace FASTNN_ISA {
AdagradKernels adagrad_kernels();
}

}  // namespace fastnn
