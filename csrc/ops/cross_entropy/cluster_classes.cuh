// Many classes, with one row per cluster of blocks: each block keeps a part of the row in its own shared
// memory, and the results of the parts are exchanged through distributed shared memory.
#pragma once

#include "ops/cross_entropy/many_classes.cuh"

namespace fastnn::cuda {

namespace {

// The blocks of a cluster, for rows that all of them process in the same order.
template <class A, bool kDense>
struct ClusterTeam {
  int blocks, rank;
  unsigned turn = 0;

  __device__ explicit ClusterTeam(int size) : blocks(size), rank(static_cast<int>(ptx::cluster_rank())) {}

  // All threads of all blocks get the same bits. One barrier is enough: a slot is written again two rows
  // later, after the next row's barrier, which every block enters after it has read this row's slots.
  __device__ __forceinline__ Moments<A, kDense> combine(const Moments<A, kDense>& of_block) {
    Moments<A, kDense>* slot = &ptx::dynamic_shared<RowShared<A, kDense>>()->of_block[turn++ % 2];
    if (threadIdx.x == 0) *slot = of_block;
    ptx::cluster_sync();
    const int lane = threadIdx.x % kWarp;
    return combine_lanes(lane < blocks ? *ptx::map_shared_rank(slot, static_cast<unsigned>(lane))
                                       : Moments<A, kDense>::of_nothing());
  }

  // The shared memory of a block that has exited must not be read: none exits before all have read.
  __device__ __forceinline__ void leave() const { ptx::cluster_sync(); }
};

// Clusters of `cluster` blocks, of which there are at most 32.
template <class T, bool kDense>
__global__ void __launch_bounds__(1024, 1)
    cluster_classes(const __grid_constant__ Rows<T> p, int kept, int cluster) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // the host requires such a device
  compute_rows<kDense>(p, kept, ClusterTeam<Acc<T>, kDense>(cluster));
#endif
}

}  // namespace

}  // namespace fastnn::cuda
