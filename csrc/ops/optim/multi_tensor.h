// One parameter of an optimizer's group, with what every optimizer has of it.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastnn {

constexpr int kMaxStates = 3;  // tensors of state a parameter: two moments and amsgrad's maximum

// All arrays have `numel` elements in one memory order, and none overlaps another, neither here nor in
// another OptimizerTensor of the call. Parameter and gradient are of `dtype`, and so is the state unless
// `float_state` is set.
struct OptimizerTensor {
  void* param;
  const void* grad;
  void* state[kMaxStates];  // in the order that the optimizer's own header gives
  float* master;            // float32 copy of a 16-bit parameter, updated in its place (master.h); or null
  int64_t numel;
  DType dtype;
  bool float_state;     // the state of a 16-bit parameter is float32; where there is a master, it is
  int64_t first_chunk;  // where the kernel notes how its work is cut
  float* device_step;   // where the step is counted, if that is on a CUDA device; else null
};

// What a step on a CUDA device reads there, each null where there is no such thing: the host then waits for
// nothing.
struct DeviceScalars {
  const void* lr;  // float or double
  bool lr_is_double;
  const float* grad_scale;  // the gradient is divided by it, and written back
  const float* found_inf;   // unless it is 0, nothing is updated and no step counted
  const double* numbers;    // the first members of the optimizer's options, read in their place; `lr` above
                            // comes before the one among them
};

}  // namespace fastnn
