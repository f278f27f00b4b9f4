// exp and log of core/vec_math.h over n contiguous elements of float32 or float64: what the other kernels
// inline, by itself, so that its error bounds can be tested on every instruction set.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastnn {

struct VecMathKernels {
  void (*exp)(DType dtype, const void* x, void* y, int64_t n);
  void (*log)(DType dtype, const void* x, void* y, int64_t n);
};

namespace FASTNN_ISA {
VecMathKernels vec_math_kernels();
}

}  // namespace fastnn
