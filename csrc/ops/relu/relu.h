// ReLU.
//   forward   y = max(x, 0), and NaN where x is NaN
//   backward  dX = dY where y > 0 or y is NaN, else 0
// Elementwise over n contiguous elements of one floating-point dtype. x and y may be the same memory, and dX
// may be dY.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastnn {

struct ReluKernels {
  void (*forward)(DType dtype, const void* x, void* y, int64_t n);
  void (*backward)(DType dtype, const void* dy, const void* y, void* dx, int64_t n);
};

namespace FASTNN_ISA {
ReluKernels relu_kernels();
}

}  // namespace fastnn
