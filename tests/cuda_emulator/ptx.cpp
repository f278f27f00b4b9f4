// Conversions with the CPU kernels' own scalar code, which its tests cover.
#include "core/cuda/ptx.cuh"

#include <cmath>

#include "core/simd.h"

namespace fastnn::cuda::ptx {

namespace {

template <class T>
unsigned pair(float low, float high) {
  return from_acc<T>(low).bits | static_cast<unsigned>(from_acc<T>(high).bits) << 16;
}

}  // namespace

float float_from_half(uint16_t bits) { return to_acc(float16{bits}); }
unsigned bfloat16_pair(float low, float high) { return pair<bfloat16>(low, high); }
unsigned half_pair(float low, float high) { return pair<float16>(low, high); }

float exp2_approximate(float x) {
  const float y = std::exp2(x);
  return std::fpclassify(y) == FP_SUBNORMAL ? 0 : y;
}

float sqrt_approximate(float x) { return std::sqrt(x); }

float byte_above_2_23(unsigned word, int index) {
  return 8388608.0f + static_cast<float>(word >> (8 * index) & 0xffu);
}

}  // namespace fastnn::cuda::ptx
