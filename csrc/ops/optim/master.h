// The float32 copy, the master, of a 16-bit parameter: the arithmetic of every device.
#pragma once

#include "core/host_device.h"

namespace fastnn::FASTNN_ISA {

// What the update begins with. After every step the parameter is the master rounded; where it is not,
// somebody has set it since, and it takes the master's place. (NaN equals nothing and comes from the
// parameter.) `rounded` is the master, rounded to the parameter's type. V is a scalar or a vector.
template <class V>
FASTNN_HOST_DEVICE V current_master(V master, V rounded, V param) {
  return rounded == param ? master : param;
}

}  // namespace fastnn::FASTNN_ISA
