// One parameter of an optimizer's group, with what every optimizer has of it.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastnn {

constexpr int kMaxStates = 3;  // tensors of state a parameter: two moments and amsgrad's maximum

// All arrays have `numel` elements of `dtype` in one memory order, and none overlaps another, neither here
// nor in another OptimizerTensor of the call.
struct OptimizerTensor {
  void* param;
  const void* grad;
  void* state[kMaxStates];  // in the order that the optimizer's own header gives
  int64_t numel;
  DType dtype;
  int64_t first_chunk;  // where the kernel notes how its work is cut
};

}  // namespace fastnn
