// Storage types on the device: the type that is computed in, and conversions to and from it.
#pragma once

#include "core/cuda/ptx.cuh"
#include "core/dtype.h"

namespace fastnn::cuda {

template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class T>
using Acc = typename AccOf<T>::type;

__device__ __forceinline__ float to_acc(float x) { return x; }
__device__ __forceinline__ double to_acc(double x) { return x; }
__device__ __forceinline__ float to_acc(bfloat16 x) {
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}
__device__ __forceinline__ float to_acc(float16 x) { return ptx::float_from_half(x.bits); }

// Rounds to nearest, ties to even; NaN stays NaN.
template <class T>
__device__ __forceinline__ T from_acc(Acc<T> x);
template <>
__device__ __forceinline__ float from_acc<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ double from_acc<double>(double x) {
  return x;
}

// Two values in one instruction: `low` is the one at the lower address.
template <class T>
__device__ __forceinline__ unsigned pair_from_acc(float low, float high);
template <>
__device__ __forceinline__ unsigned pair_from_acc<bfloat16>(float low, float high) {
  return ptx::bfloat16_pair(low, high);
}
template <>
__device__ __forceinline__ unsigned pair_from_acc<float16>(float low, float high) {
  return ptx::half_pair(low, high);
}
template <>
__device__ __forceinline__ bfloat16 from_acc<bfloat16>(float x) {
  return {static_cast<uint16_t>(pair_from_acc<bfloat16>(x, 0.0f))};
}
template <>
__device__ __forceinline__ float16 from_acc<float16>(float x) {
  return {static_cast<uint16_t>(pair_from_acc<float16>(x, 0.0f))};
}

}  // namespace fastnn::cuda
