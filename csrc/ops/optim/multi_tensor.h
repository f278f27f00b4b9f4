// One parameter of an optimizer's group, with the fields common to all optimizers.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastnn {

constexpr int kMaxStates = 3;  // state tensors per parameter: two moments and amsgrad's maximum

// All arrays have `numel` elements in one memory order, and none overlaps another, neither here nor in
// another OptimizerTensor of the call. Parameter and gradient are of `dtype`, and so is the state unless
// `float_state` is set.
struct OptimizerTensor {
  void* param;
  const void* grad;
  void* state[kMaxStates];  // in the order of the optimizer's own header
  float* master;            // float32 copy of a 16-bit parameter, updated instead of it (master.h); or null
  int64_t numel;
  DType dtype;
  bool float_state;     // the state of a 16-bit parameter is float32; where there is a master, it is
  int64_t first_chunk;  // used by the kernel to split its work
  float* device_step;   // the step count, if it is on a CUDA device; else null
};

// Values that a step on a CUDA device reads there, each null if absent: the host then waits for nothing.
struct DeviceScalars {
  const void* lr;  // float or double
  bool lr_is_double;
  const float* grad_scale;  // the gradient is divided by it, and written back
  const float* found_inf;   // unless it is 0, nothing is updated and no step counted
  const double* numbers;    // the first members of the optimizer's options, used instead of them; `lr` above
                            // takes precedence over the one here
};

}  // namespace fastnn
