// Replaces csrc/core/cuda/ptx_matrix.cuh: the same functions without PTX. A copy is made when it is waited
// for, as late as the device may make it.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastnn::cuda::ptx {

using SharedAddress = uintptr_t;
inline SharedAddress shared_address(const void* p) { return reinterpret_cast<SharedAddress>(p); }

template <class Int>
Int keep(Int x) {
  return x;
}

void copy_async_bytes(void* shared, const void* global, int bytes, int valid);
template <int kBytes>
void copy_async(void* shared, const void* global, int valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  copy_async_bytes(shared, global, kBytes, valid);
}
template <int kBytes>
void copy_async(SharedAddress shared, const void* global, int valid) {
  copy_async<kBytes>(reinterpret_cast<void*>(shared), global, valid);
}
void commit_copies();
void wait_copies(int pending);
template <int kPending>
void wait_copies() {
  wait_copies(kPending);
}

void load_matrices(uint32_t (&words)[4], SharedAddress row);
void load_transposed_matrices(uint32_t (&words)[4], SharedAddress row);
uint32_t load_word(SharedAddress at);

template <class T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

uint32_t round_to_tf32(float x);

}  // namespace fastnn::cuda::ptx
