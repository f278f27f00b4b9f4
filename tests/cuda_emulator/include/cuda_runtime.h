// CUDA C++ for g++ and Clang, for kernels that run on the CPU: what nvcc has built in or
// finds in its own <cuda_runtime.h>. Instructions that pass values between threads go through scheduler.h.
#pragma once

#define __CUDACC__

#include <math.h>  // exp, sqrt and so on, in all their overloads, in the global namespace

#include <cstring>
#include <type_traits>

#include "cuda_runtime_api.h"
#include "scheduler.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
// Blocks run one after another. Those of a cluster do not: kernels for clusters use dynamic memory only.
#define __shared__ static

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

// Of the running thread; set by the scheduler at every switch.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

template <class To, class From>
To emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulated_bits<float>(x); }
inline int __float_as_int(float x) { return emulated_bits<int>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
template <class T, std::enable_if_t<std::is_arithmetic_v<T>, int> = 0>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T, std::enable_if_t<std::is_arithmetic_v<T>, int> = 0>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

// Cache hints have no effect here.
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stwb(T* p, T value) {
  *p = value;
}
template <class T>
void __stcg(T* p, T value) {
  *p = value;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// Threads are switched only where they wait, so a read and a write are never interrupted.
template <class T>
T atomicAdd(T* p, std::common_type_t<T> value) {
  const T old = *p;
  *p += value;
  return old;
}
template <class T>
T atomicMax(T* p, std::common_type_t<T> value) {
  const T old = *p;
  *p = max(old, value);
  return old;
}
template <class T>
T atomicExch(T* p, std::common_type_t<T> value) {
  const T old = *p;
  *p = value;
  return old;
}
template <class T>
T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> value) {
  const T old = *p;
  if (old == expected) *p = value;
  return old;
}

inline void __syncthreads() { cuda_emulator::sync_block(); }
inline int __syncthreads_or(int predicate) { return cuda_emulator::sync_block(predicate != 0); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { cuda_emulator::exchange("__syncwarp", mask, 0); }

template <class T>
T emulated_shuffle(const char* name, unsigned mask, T value, int from) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  const auto all = cuda_emulator::exchange(name, mask, value);
  if ((mask >> from & 1) == 0) cuda_emulator::fail("a shuffle reads a lane that is not in its mask");
  return all[static_cast<size_t>(from)];
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  const int lane = cuda_emulator::lane(), first = lane / width * width;
  return emulated_shuffle("__shfl_sync", mask, value, first + (from & (width - 1)));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned step, int width = 32) {
  const int lane = cuda_emulator::lane(), from = lane - static_cast<int>(step);
  return emulated_shuffle("__shfl_up_sync", mask, value, from < lane / width * width ? lane : from);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned step, int width = 32) {
  const int lane = cuda_emulator::lane(), from = lane + static_cast<int>(step);
  return emulated_shuffle("__shfl_down_sync", mask, value, from >= (lane / width + 1) * width ? lane : from);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int step, int width = 32) {
  const int lane = cuda_emulator::lane(), from = lane ^ step;
  return emulated_shuffle("__shfl_xor_sync", mask, value, from >= (lane / width + 1) * width ? lane : from);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const auto all = cuda_emulator::exchange("__ballot_sync", mask, predicate);
  unsigned ballot = 0;
  for (unsigned i = 0; i < 32; ++i)
    if ((mask >> i & 1) != 0 && all[i] != 0) ballot |= 1u << i;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  *attributes = {0, 1024, cuda_emulator::ptx_version(), cuda_emulator::binary_version()};
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  return cuda_emulator::set_attribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel* kernel, const cudaLaunchConfig_t* config) {
  *clusters = cuda_emulator::active_clusters(*config, reinterpret_cast<const void*>(kernel));
  return cudaSuccess;
}

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  size_t bytes = 0;
  ((bytes = (bytes + alignof(Params) - 1) / alignof(Params) * alignof(Params) + sizeof(Params)), ...);
  return [&](Params... converted) {
    return cuda_emulator::launch(*config, reinterpret_cast<const void*>(kernel), bytes,
                                 [&] { kernel(converted...); });
  }(std::forward<Args>(args)...);
}
