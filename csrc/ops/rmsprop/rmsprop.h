// RMSprop, the update of many tensors at once. For every element:
//   g    = grad_scale * grad, or its negative to maximize; g += weight_decay * p
//   v    = alpha * v + (1 - alpha) * g * g
//   d    = v, or centered: a = alpha * a + (1 - alpha) * g and d = v - a * a
//   u    = g / (sqrt(d) + eps), or with momentum: b = momentum * b + g / (sqrt(d) + eps) and u = b
//   p   -= lr * u
// 16-bit types are computed in float32 and rounded once, when they are stored.
#pragma once

#include "ops/optim/multi_tensor.h"

namespace fastnn {

// state: v, then b with momentum, then a if centered
using RmspropTensor = OptimizerTensor;

struct RmspropOptions {
  double lr;
  double alpha;
  double eps;
  double l2;        // weight decay
  double momentum;  // none unless it is above 0
  bool centered;
  bool maximize;
  double grad_scale = 1;
};

struct RmspropKernels {
  void (*update)(RmspropTensor* tensors, int64_t count, const RmspropOptions& options);
  // The elements [begin, end) of one tensor, by the calling thread only.
  void (*update_range)(const RmspropTensor& tensor, const RmspropOptions& options, int64_t begin,
                       int64_t end);
};

namespace FASTNN_ISA {
RmspropKernels rmsprop_kernels();
}

}  // namespace fastnn
