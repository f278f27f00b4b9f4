// The functions of core/vec_math.h and core/vec_special.h over n contiguous elements of float32 or float64:
// functions that the other kernels inline, on their own, so that its error bounds can be tested on every
// instruction set.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastnn {

using VecFunction = void (*)(DType dtype, const void* x, void* y, int64_t n);

struct VecMathKernels {
  VecFunction exp, log, log1p, sigmoid, tanh, normal_cdf;
};

namespace FASTNN_ISA {
VecMathKernels vec_math_kernels();
}

}  // namespace fastnn
