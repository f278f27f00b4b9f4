// Reductions over groups of threads and blocks, always in the same order: bitwise the same in every run.
#pragma once

#include "core/cuda/launch.cuh"

namespace fastnn::cuda {

constexpr int kMaxWarps = 32;  // of a block

// Combines the values of kGroup neighbouring lanes; all of them get the result. Every lane of the warp calls
// it.
template <int kGroup, class V, class Combine>
__device__ __forceinline__ V reduce_group(V value, const Combine& combine) {
#pragma unroll
  for (int step = kGroup / 2; step > 0; step /= 2) value = combine(value, value.shuffled(step));
  return value;
}

// A value that reduce_group can pass between lanes.
template <class V>
struct Term {
  V value;
  __device__ __forceinline__ Term shuffled(int step) const {
    return {__shfl_xor_sync(0xffffffffu, value, step)};
  }
};
using Sum = Term<double>;

template <int kGroup, class V>
__device__ __forceinline__ V sum_group(V value) {
  return reduce_group<kGroup>(Term<V>{value}, [](Term<V> a, Term<V> b) { return Term<V>{a.value + b.value}; })
      .value;
}
template <int kGroup, class V>
__device__ __forceinline__ V max_group(V value) {
  return reduce_group<kGroup>(Term<V>{value}, [](Term<V> a, Term<V> b) { return a.value < b.value ? b : a; })
      .value;
}

// Combines the values of all threads of a block; all get the result. `slots` is shared memory of kMaxWarps
// values not used otherwise in the meantime; blockDim.x is a multiple of 32.
template <class V, class Combine>
__device__ V reduce_block(V value, V* slots, const Combine& combine) {
  value = reduce_group<kWarp>(value, combine);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  __syncthreads();  // a result of an earlier call may still be read from the slots
  if (lane == 0) slots[warp] = value;
  __syncthreads();
  V result = slots[0];
  for (int w = 1; w < warps; ++w) result = combine(result, slots[w]);
  return result;
}

__device__ __forceinline__ double sum_block(double value, Sum* slots) {
  return reduce_block(Sum{value}, slots, [](Sum a, Sum b) { return Sum{a.value + b.value}; }).value;
}

// True in the last of `blocks` blocks that call it: it sees what all others wrote to device memory before
// their call. `counter` is 0 at the start of the launch.
__device__ __forceinline__ bool is_last_block(unsigned* counter, unsigned blocks) {
  __threadfence();
  __syncthreads();
  const int last = __syncthreads_or(threadIdx.x == 0 && atomicAdd(counter, 1u) == blocks - 1);
  __threadfence();
  return last != 0;
}

}  // namespace fastnn::cuda
