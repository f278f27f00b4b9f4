// Single instructions of matrix products: copies to shared memory that overlap with the arithmetic, and
// products of one warp on the tensor cores. tests/cuda_emulator replaces this file too.
//
// c (16, 8) += a (16, K) b (K, 8) with K = 32 bytes of elements: 16 of bfloat16 or float16, 8 of tf32. With
// g = lane / 4 and t = lane % 4 a lane holds, of 16-bit types in pairs along K,
//   a[0..3]  row g, g + 8, g, g + 8 at word t, t, t + 4, t + 4 of the 8 words of a row
//   b[0..1]  column g at word t and t + 4
//   c[0..3]  (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1)
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastnn::cuda::ptx {

using SharedAddress = uint32_t;
__device__ __forceinline__ SharedAddress shared_address(const void* p) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(p));
}

// x. Hides from the compiler how it was computed: otherwise it would recompute it from the thread index in
// every iteration of a loop.
template <class Int>
__device__ __forceinline__ Int keep(Int x) {
  static_assert(sizeof(Int) == 4);
  asm volatile("" : "+r"(x));
  return x;
}

// Copies the first `valid` of kBytes and fills the rest with zeros; both addresses are aligned to kBytes, and
// with valid = 0 nothing is read.
template <int kBytes>
__device__ __forceinline__ void copy_async(SharedAddress shared, const void* global, int valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if constexpr (kBytes == 16)  // bypasses L1: a block reads each of them once
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(global), "n"(kBytes),
                 "r"(valid)
                 : "memory");
}
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, int valid) {
  copy_async<kBytes>(shared_address(shared), global, valid);
}

// Closes a group of this thread's copies.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all but the last kPending groups of this thread have arrived; others see them after a barrier.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four matrices of 8 rows of 16 bytes; lane l gives the address of row l % 8 of matrix l / 8, and gets word t
// of row g of matrix q in words[q].
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(row)
               : "memory");
}

// The same of 16-bit elements, each matrix transposed: words[q] holds rows 2t, 2t + 1 of column g.
__device__ __forceinline__ void load_transposed_matrices(uint32_t (&words)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(row)
               : "memory");
}

__device__ __forceinline__ uint32_t load_word(SharedAddress at) {
  uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(at) : "memory");
  return word;
}

// T is the element type of a and b; float stands for tf32.
template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void multiply_add<bfloat16>(float (&c)[4], const uint32_t (&a)[4],
                                                       const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void multiply_add<float16>(float (&c)[4], const uint32_t (&a)[4],
                                                      const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void multiply_add<float>(float (&c)[4], const uint32_t (&a)[4],
                                                    const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The nearest number of 11 significant bits, the upper of two equally near ones; its low 13 bits are 0.
__device__ __forceinline__ uint32_t round_to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

}  // namespace fastnn::cuda::ptx
