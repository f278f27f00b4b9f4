// The bias corrections of Adam. Separate from the update, because kernels that are compiled once for each
// instruction set use no functions of the standard library.
#pragma once

#include <cmath>

#include "core/host_device.h"
#include "ops/adam/adam.h"

namespace fastnn::FASTNN_ISA {

struct AdamScales {
  double step_size;    // lr / (1 - beta1^t)
  double denom_scale;  // 1 / sqrt(1 - beta2^t)
};

FASTNN_HOST_DEVICE AdamScales adam_scales(const AdamOptions& o, double step) {
  return {o.lr / (1 - pow(o.beta1, step)), 1 / sqrt(1 - pow(o.beta2, step))};
}

}  // namespace fastnn::FASTNN_ISA
