// 128 bits of a tensor: what one thread loads or stores in one instruction.
#pragma once

#include "core/cuda/dtype.cuh"

namespace fastnn::cuda {

constexpr int kPackBytes = 16;

template <class T>
constexpr int kPackSize = kPackBytes / static_cast<int>(sizeof(T));

template <class T>
struct alignas(kPackBytes) Pack {
  T at[kPackSize<T>];
};

// p is aligned to 16 bytes; stores are to device memory.
template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* p) {
  Pack<T> pack;
  reinterpret_cast<uint4&>(pack) = *reinterpret_cast<const uint4*>(p);
  return pack;
}
template <class T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T>& pack) {
  // A plain assignment may be split into words again, as seen with nvcc 13.0 if the last of several is
  // guarded.
  __stwb(reinterpret_cast<uint4*>(p), reinterpret_cast<const uint4&>(pack));
}

// For memory that is not touched again soon: it should not evict other data from the caches.
template <class T>
__device__ __forceinline__ void store_pack_streaming(T* p, const Pack<T>& pack) {
  __stcs(reinterpret_cast<uint4*>(p), reinterpret_cast<const uint4&>(pack));
}

template <class T>
__device__ __forceinline__ void unpack(const Pack<T>& pack, Acc<T>* to) {
#pragma unroll
  for (int i = 0; i < kPackSize<T>; ++i) to[i] = to_acc(pack.at[i]);
}

template <class T>
__device__ __forceinline__ Pack<T> pack(const Acc<T>* from) {
  Pack<T> result;
  if constexpr (sizeof(T) == 2) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = pair_from_acc<T>(from[2 * i], from[2 * i + 1]);
    reinterpret_cast<uint4&>(result) = make_uint4(words[0], words[1], words[2], words[3]);
  } else {
#pragma unroll
    for (int i = 0; i < kPackSize<T>; ++i) result.at[i] = from[i];
  }
  return result;
}

// Elements before the first address that is aligned to 16 bytes.
template <class T>
__host__ __device__ __forceinline__ int elements_to_alignment(const T* p) {
  const auto misaligned = static_cast<int>(reinterpret_cast<uintptr_t>(p) % kPackBytes);
  return (kPackBytes - misaligned) % kPackBytes / static_cast<int>(sizeof(T));
}

// Whether every one of the addresses is as far from a 16-byte boundary as the first.
template <class T, class... Rest>
bool equally_aligned(const T* first, const Rest*... rest) {
  const auto offset = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % kPackBytes; };
  return ((offset(first) == offset(rest)) && ...);
}

}  // namespace fastnn::cuda
