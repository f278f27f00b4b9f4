// Conversions with the CPU kernels' own scalar code, which its tests cover.
#include "core/cuda/ptx.cuh"

#include <cmath>
#include <cstring>

#include "core/simd.h"

namespace fastnn::cuda::ptx {

namespace {

template <class T>
unsigned pair(float low, float high) {
  return from_acc<T>(low).bits | static_cast<unsigned>(from_acc<T>(high).bits) << 16;
}

// With the largest error that the device may have, up or down by the last bits of the argument.
float with_error(float x, float y, float relative) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return (bits ^ bits >> 7) & 1 ? y * (1 + relative) : y * (1 - relative);
}

}  // namespace

float float_from_half(uint16_t bits) { return to_acc(float16{bits}); }
unsigned bfloat16_pair(float low, float high) { return pair<bfloat16>(low, high); }
unsigned half_pair(float low, float high) { return pair<float16>(low, high); }

float exp2_approximate(float x) {
  const float y = std::exp2(x);
  if (std::fpclassify(y) == FP_SUBNORMAL) return 0;
  return x == std::floor(x) ? y : with_error(x, y, 0x1p-22f);  // powers of two are exact
}

float sqrt_approximate(float x) { return x == 0 ? x : with_error(x, std::sqrt(x), 0x1p-23f); }

float byte_above_2_23(unsigned word, int index) {
  return 8388608.0f + static_cast<float>(word >> (8 * index) & 0xffu);
}

}  // namespace fastnn::cuda::ptx
