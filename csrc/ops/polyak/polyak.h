// The soft update of target networks, of many tensors at once. For every element, t of the target and s of
// the source:
//   t += tau * (s - t)              where tau < 1/2
//   t  = s + (tau - 1) * (s - t)    elsewhere: the nearer end is corrected, as in torch.lerp
//   t  = s                          where tau is 1, every bit of it; where tau is 0 nothing is written
// 16-bit types are computed in float32 and rounded once, when they are stored.
#pragma once

#include "ops/optim/multi_tensor.h"

namespace fastnn {

struct PolyakKernels {
  // Of each tensor, param is the target and grad the source, which may be the same memory.
  void (*update)(OptimizerTensor* tensors, int64_t count, double tau);
};

namespace FASTNN_ISA {
PolyakKernels polyak_kernels();
}

}  // namespace fastnn
