// The float32 copy, the master, of a 16-bit parameter: the arithmetic shared by all devices.
#pragma once

#include "core/host_device.h"

namespace fastnn::FASTNN_ISA {

// The initial value of the update. After every step the parameter is the master, rounded; if it is not, it
// has been set since, and it replaces the master. (NaN equals nothing, so it comes from the parameter.)
// `rounded` is the master, rounded to the parameter's type. V is a scalar or a vector.
template <class V>
FASTNN_HOST_DEVICE V current_master(V master, V rounded, V param) {
  return rounded == param ? master : param;
}

}  // namespace fastnn::FASTNN_ISA
