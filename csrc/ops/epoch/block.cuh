// What every part of the epoch kernel needs: the block's named shared memory, and its share of the units.
#pragma once

#include "core/cuda/launch.cuh"
#include "core/cuda/ptx.cuh"
#include "core/cuda/ptx_matrix.cuh"
#include "core/cuda/reduce.cuh"
#include "ops/epoch/layout.h"

namespace fastnn::cuda {

// 168 registers each, of which the tile of the hidden layer takes 64 for sums and 32 for weights; with 512
// threads, of 128 registers, nvcc 13.0 spills. On 16 blocks a step of 784-128-10 has work for 8 warps and
// then for 11.
constexpr int kEpochThreads = 384;
constexpr int kEpochWarps = kEpochThreads / kWarp;

struct EpochLaunch {
  EpochArgs args;
  EpochLayout layout;
  int* bad;                  // not 0 if an index is out of range
  StepConstants* constants;  // [steps]
  int steps;
};

struct EpochBlock {
  const EpochLaunch& p;
  const EpochLayout& l;
  unsigned char* shared;
  int rank, own;  // units that the block actually has; the others in its tiles are zeros
  int first;      // of them in the network

  __device__ explicit EpochBlock(const EpochLaunch& launch)
      : p(launch),
        l(launch.layout),
        shared(ptx::dynamic_shared<unsigned char>()),
        rank(static_cast<int>(ptx::cluster_rank())) {
    first = rank * l.units;
    own = max(0, min(l.units, l.hidden - first));
  }

  __device__ __forceinline__ float* floats(int at) const { return reinterpret_cast<float*>(shared + at); }
  __device__ __forceinline__ int64_t* rows(int step) const {
    return reinterpret_cast<int64_t*>(shared + l.rows) + (step % 2) * round_up(l.batch, kTile);
  }
  __device__ __forceinline__ int64_t* labels(int step) const {
    return reinterpret_cast<int64_t*>(shared + l.labels) + (step % 2) * round_up(l.batch, kTile);
  }
  __device__ __forceinline__ AdamConstants<float>* constants(int step) const {
    return reinterpret_cast<AdamConstants<float>*>(shared + l.constants) + (step % 2) * kEpochParameters;
  }
  __device__ __forceinline__ unsigned char* images(int step) const {
    return shared + l.images + step % l.buffers * round_up(l.batch, kTile) * l.image_stride;
  }

  // Rows of a step's batch; the last may have fewer.
  __device__ __forceinline__ int batch_of(int step) const {
    const int64_t left = p.args.count - int64_t{step} * l.batch;
    return left < l.batch ? static_cast<int>(left) : l.batch;
  }
};

// The image for each row of a step's batch: copied one step before the images themselves, so that no address
// waits for memory.
__device__ __forceinline__ void look_up_rows(const EpochBlock& block, int step) {
  if (step >= block.p.steps) return;
  const int64_t* order = block.p.args.order + int64_t{step} * block.l.batch;
  int64_t* rows = block.rows(step);
  for (int b = threadIdx.x; b < block.batch_of(step); b += kEpochThreads)
    ptx::copy_async<8>(&rows[b], &order[b], 8);
}

// Images, labels and the constants of the update of a step.
__device__ __forceinline__ void fetch_batch(const EpochBlock& block, int step) {
  if (step >= block.p.steps) return;
  const EpochLayout& l = block.l;
  const EpochArgs& args = block.p.args;
  const int batch = block.batch_of(step), features = l.features, tid = threadIdx.x;
  const int64_t* rows = block.rows(step);
  unsigned char* images = block.images(step);
  if (features % 16 == 0 && reinterpret_cast<uintptr_t>(args.images) % 16 == 0) {
    const int packs = features / 16;
    for (int i = tid; i < batch * packs; i += kEpochThreads) {
      const int b = i / packs, at = (i - b * packs) * 16;
      ptx::copy_async<16>(images + b * l.image_stride + at, args.images + rows[b] * features + at, 16);
    }
  } else {
    for (int i = tid; i < batch * features; i += kEpochThreads) {
      const int b = i / features, at = i - b * features;
      images[b * l.image_stride + at] = args.images[rows[b] * features + at];
    }
  }
  for (int b = tid; b < batch; b += kEpochThreads)
    ptx::copy_async<8>(&block.labels(step)[b], &args.labels[rows[b]], 8);
  constexpr int kPacks = sizeof(StepConstants) / 16;
  const auto* from = reinterpret_cast<const unsigned char*>(block.p.constants + step);
  if (tid < kPacks)
    ptx::copy_async<16>(reinterpret_cast<unsigned char*>(block.constants(step)) + tid * 16, from + tid * 16,
                        16);
}

// Calls visit(address in shared memory, index in the parameter) for each of the block's own elements of a
// parameter and its states: `at` is the first one, in floats; m and v follow at the same distances.
template <class Visit>
__device__ __forceinline__ void for_each_own(const EpochBlock& block, const Visit& visit) {
  const EpochLayout& l = block.l;
  const int tid = threadIdx.x;
  for (int i = tid; i < block.own * l.features; i += kEpochThreads) {
    const int u = i / l.features, k = i - u * l.features;
    visit(0, block.floats(l.w1) + u * l.weight_stride + k, l.w1_size(),
          int64_t{block.first + u} * l.features + k);
  }
  for (int u = tid; u < block.own; u += kEpochThreads)
    visit(1, block.floats(l.b1) + u, l.unit_rows, int64_t{block.first + u});
  for (int i = tid; i < block.own * l.classes; i += kEpochThreads) {
    const int c = i / block.own, u = i - c * block.own;
    visit(2, block.floats(l.w2) + u * l.class_stride + c, l.unit_rows * l.class_stride,
          int64_t{c} * l.hidden + block.first + u);
  }
  for (int c = tid; c < l.classes; c += kEpochThreads)
    visit(3, block.floats(l.b2) + c, l.class_stride, int64_t{c});
}

// Zeros where a tile exceeds the block's share, and for missing parts of the network.
__device__ __forceinline__ void load_parameters(const EpochBlock& block) {
  float* state = block.floats(block.l.w1);  // the first of all, up to the hidden layer
  const int floats = (block.l.hidden_values - block.l.w1) / static_cast<int>(sizeof(float));
  for (int i = threadIdx.x; i < floats; i += kEpochThreads) state[i] = 0;
  __syncthreads();
  for_each_own(block, [&](int parameter, float* at, int apart, int64_t index) {
    const EpochParameter& from = block.p.args.parameters[parameter];
    at[0] = from.value[index];
    at[apart] = from.m[index];
    at[2 * apart] = from.v[index];
  });
}

__device__ __forceinline__ void store_parameters(const EpochBlock& block) {
  for_each_own(block, [&](int parameter, const float* at, int apart, int64_t index) {
    if (parameter == 3 && block.rank != 0) return;  // every block has b2, with the same bits
    const EpochParameter& to = block.p.args.parameters[parameter];
    to.value[index] = at[0];
    to.m[index] = at[apart];
    to.v[index] = at[2 * apart];
  });
}

}  // namespace fastnn::cuda
