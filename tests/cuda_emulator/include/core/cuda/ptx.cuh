// In place of csrc/core/cuda/ptx.cuh: the same functions without PTX.
#pragma once

#include <cstdint>

#include "scheduler.h"

namespace fastnn::cuda::ptx {

float float_from_half(uint16_t bits);
unsigned bfloat16_pair(float low, float high);
unsigned half_pair(float low, float high);
float exp2_approximate(float x);
float sqrt_approximate(float x);

float byte_above_2_23(unsigned word, int index);
template <int kIndex>
float byte_above_2_23(unsigned word) {
  return byte_above_2_23(word, kIndex);
}

template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(cuda_emulator::dynamic_shared());
}

inline void cluster_sync() { cuda_emulator::sync_cluster(); }
inline unsigned cluster_rank() { return cuda_emulator::cluster_rank(); }

template <class T>
T* map_shared_rank(T* p, unsigned rank) {
  const auto offset = reinterpret_cast<unsigned char*>(p) - cuda_emulator::dynamic_shared();
  return reinterpret_cast<T*>(cuda_emulator::dynamic_shared_of(rank) + offset);
}

}  // namespace fastnn::cuda::ptx
