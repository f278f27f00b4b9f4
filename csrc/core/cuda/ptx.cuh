// What C++ cannot express: single instructions, dynamic shared memory, clusters. Everything else in the
// kernels is C++ that other compilers accept too: tests/cuda_emulator replaces this file
// and ptx_matrix.cuh, which matrix products need, and only these.
#pragma once

#include <cstdint>

namespace fastnn::cuda::ptx {

__device__ __forceinline__ float float_from_half(uint16_t bits) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(bits));
  return wide;
}

// Rounded to nearest, ties to even; `low` goes to the lower half.
__device__ __forceinline__ unsigned bfloat16_pair(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ unsigned half_pair(float low, float high) {
  unsigned pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// 2^x; subnormal results are 0.
__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// With a relative error of up to 2^-23.
__device__ __forceinline__ float sqrt_approximate(float x) {
  float y;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 2^23 + byte kIndex of a word, in one instruction: the byte becomes the low bits of the significand.
template <int kIndex>
__device__ __forceinline__ float byte_above_2_23(unsigned word) {
  unsigned bits;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bits) : "r"(word), "r"(0x4b000000u), "n"(0x7650 | kIndex));
  return __uint_as_float(bits);
}

// The dynamic shared memory of the block, aligned to 128 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}

// From sm_90 on. What the blocks of a cluster wrote before it, including to shared memory, is visible to all
// of them afterwards.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// The address in block `rank` of the cluster that corresponds to p, in this block's dynamic shared memory.
template <class T>
__device__ __forceinline__ T* map_shared_rank(T* p, unsigned rank) {
  uint64_t there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(reinterpret_cast<uint64_t>(p)), "r"(rank));
  return reinterpret_cast<T*>(there);
}

}  // namespace fastnn::cuda::ptx
