// A product that is never fused into a sum.
#pragma once

#include "core/host_device.h"

#if !defined(__CUDACC__)
#include "core/simd.h"
#endif

namespace fastnn::FASTNN_ISA {

#if defined(__CUDA_ARCH__)
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }
template <class V, class B>
__device__ __forceinline__ V rounded_product(V a, B b) {
  return a * b;  // of a type that makes no promise
}
#endif

// a * b, rounded. In a sum of two products the compiler may fuse either one with the addition, differently in
// each copy of the code: the same update on numbers stored in another type would give different bits. V is a
// scalar or a vector, B its scalar or the same.
template <class V, class B>
FASTNN_HOST_DEVICE V product(V a, B b) {
#if defined(__CUDA_ARCH__)
  return rounded_product(a, b);
#else
  V x = a * b;
#if !defined(__CUDACC__)
  keep_in_register(x);
#endif
  return x;
#endif
}

}  // namespace fastnn::FASTNN_ISA
