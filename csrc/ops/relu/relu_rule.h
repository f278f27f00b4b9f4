// ReLU of one element, or of one vector of elements: the arithmetic shared by all devices.
#pragma once

#include "core/host_device.h"

namespace fastnn::FASTNN_ISA {

template <class V>
FASTNN_HOST_DEVICE V relu_value(V x) {
  return x < 0 ? V{} : x;
}

// Comparing with <= keeps the gradient where y is NaN.
template <class V>
FASTNN_HOST_DEVICE V relu_gradient(V dy, V y) {
  return y <= 0 ? V{} : dy;
}

}  // namespace fastnn::FASTNN_ISA
