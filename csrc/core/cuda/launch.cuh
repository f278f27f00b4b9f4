// Sizes of launches, and the check that follows each.
#pragma once

#include <stdexcept>
#include <string>

#include "core/cuda/device.h"

namespace fastnn::cuda {

constexpr int kWarp = 32;

template <class Int>
__host__ __device__ constexpr Int ceil_div(Int a, Int b) {
  return (a + b - 1) / b;
}

// The x dimension of a grid; throws where a device takes no so large one (2^31 - 1).
inline unsigned grid_blocks(int64_t blocks, const char* op) {
  if (blocks > INT32_MAX) throw std::runtime_error(std::string(op) + ": the tensors are too large");
  return static_cast<unsigned>(blocks);
}

inline void check_launch(const char* op) { check_cuda(cudaGetLastError(), op); }

}  // namespace fastnn::cuda
