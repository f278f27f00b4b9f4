// Stochastic gradient descent, the update of many tensors at once. For every element:
//   g    = grad_scale * grad, or its negative to maximize; g += weight_decay * p
//   with momentum:
//     b  = momentum * b + (1 - dampening) * g, or g in the first step
//     g  = b, or under nesterov g + momentum * b
//   p   -= lr * g
// 16-bit types are computed in float32 and rounded once, when they are stored.
#pragma once

#include "ops/optim/multi_tensor.h"

namespace fastnn {

// state: the momentum buffer, or nothing without momentum
struct SgdTensor : OptimizerTensor {
  bool first;  // the buffer is not initialised yet
};

struct SgdOptions {
  double lr;
  double momentum;
  double dampening;
  double l2;  // weight decay
  bool nesterov;
  bool maximize;
  double grad_scale = 1;
};

struct SgdKernels {
  void (*update)(SgdTensor* tensors, int64_t count, const SgdOptions& options);
  // The elements [begin, end) of one tensor, by the calling thread only.
  void (*update_range)(const SgdTensor& tensor, const SgdOptions& options, int64_t begin, int64_t end);
};

namespace FASTNN_ISA {
SgdKernels sgd_kernels();
}

}  // namespace fastnn
