// Maximum and sums of a row's logits, gathered by many threads and combined within a warp, a block, a
// cluster.
#pragma once

#include "core/cuda/ptx.cuh"
#include "core/cuda/reduce.cuh"

namespace fastnn::cuda {

namespace {

// exp of a number that is not above 0, in two instructions. x log2(e) is rounded once, so the relative error
// is about 1e-7 (1 + |x|): no more than 1e-7 of the largest term, which is 1. Subnormal results are 0.
__device__ __forceinline__ float exp_negative(float x) {
  return ptx::exp2_approximate(x * 1.44269504088896341f);
}
__device__ __forceinline__ double exp_negative(double x) { return exp(x); }

// Maximum so far, and the sums relative to it: total of exp(x - largest), pulls of q, distance of
// q (largest - x). The last two are 0 unless kDense: rows that have a q in every class.
template <class V, bool kDense>
struct Moments {
  V largest, total, pulls, distance;

  __device__ __forceinline__ static Moments of_nothing() { return {-V(INFINITY), 0, 0, 0}; }

  // What is subtracted from x: until a value above -inf has been seen, exp(-inf - 0) = 0 rather than
  // exp(-inf + inf) = NaN.
  __device__ __forceinline__ static V pivot(V largest) { return largest == -V(INFINITY) ? V(0) : largest; }

  // The same sums, relative to a maximum that is at least as large.
  __device__ __forceinline__ void raise(V to) {
    if (!(largest < to)) return;
    total *= exp_negative(largest - to);
    if constexpr (kDense) distance += pulls * (to - pivot(largest));
    largest = to;
  }
};

// Combines those of the 32 lanes of a warp; all lanes get the same bits. The maximum goes first, so that each
// lane takes one exponential; merging two at a time would take five of them here, and one per warp when a
// block combines its warps one after the other. The sums are taken in pairs: the ten additions of lanes and
// warps round a sum of float32 by 10 * 2^-24 at most.
template <class V, bool kDense>
__device__ __forceinline__ Moments<V, kDense> combine_lanes(Moments<V, kDense> mine) {
  mine.raise(max_group<kWarp>(mine.largest));
  mine.total = sum_group<kWarp>(mine.total);
  if constexpr (kDense) {
    mine.pulls = sum_group<kWarp>(mine.pulls);
    mine.distance = sum_group<kWarp>(mine.distance);
  }
  return mine;
}

// The same for all threads of a block. `slots` is shared memory of kMaxWarps values, not used otherwise in
// the meantime.
template <class V, bool kDense>
__device__ __forceinline__ Moments<V, kDense> combine_block(const Moments<V, kDense>& mine,
                                                            Moments<V, kDense>* slots) {
  const Moments<V, kDense> of_warp = combine_lanes(mine);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  __syncthreads();  // those of the previous row may still be read
  if (lane == 0) slots[warp] = of_warp;
  __syncthreads();
  return combine_lanes(lane < warps ? slots[lane] : Moments<V, kDense>::of_nothing());
}

}  // namespace

}  // namespace fastnn::cuda
