// The parts of a step, each done by all threads of a block.
#pragma once

#include "ops/epoch/block.cuh"
#include "ops/relu/relu_rule.h"

namespace fastnn::cuda {

// The four features of a word of an image.
__device__ __forceinline__ void unpack_image(unsigned word, float scale, float shift, float (&x)[4]) {
  constexpr float kAbove = 8388608;  // 2^23
  x[0] = (ptx::byte_above_2_23<0>(word) - kAbove) * scale + shift;
  x[1] = (ptx::byte_above_2_23<1>(word) - kAbove) * scale + shift;
  x[2] = (ptx::byte_above_2_23<2>(word) - kAbove) * scale + shift;
  x[3] = (ptx::byte_above_2_23<3>(word) - kAbove) * scale + shift;
}

// Adds 2 kHalf values over kHalf lanes each, kHalf being 32 at first: every lane keeps two sums, those of
// values 2 lane and 2 lane + 1. In each round a lane passes on half of its values and receives the other
// half, which needs a fifth of the 320 shuffles of 64 separate sums.
template <int kHalf>
__device__ __forceinline__ void sum_over_lanes(float* values) {
  constexpr int kMask = kHalf / 2;
  const bool upper = (threadIdx.x & kMask) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float given = upper ? values[i] : values[i + kHalf];
    const float kept = upper ? values[i + kHalf] : values[i];
    values[i] = kept + __shfl_xor_sync(0xffffffffu, given, kMask);
  }
  if constexpr (kHalf > 2) sum_over_lanes<kHalf / 2>(values);
}

// hidden = relu(x W1^T + b1). A warp computes 8 rows of 8 units, its lanes share the features in groups of
// four.
__device__ __forceinline__ void compute_hidden(const EpochBlock& block, int step) {
  const EpochLayout& l = block.l;
  const int lane = threadIdx.x % kWarp, quads = l.weight_stride / 4, unit_tiles = l.unit_rows / kTile;
  const int tiles = ceil_div(block.batch_of(step), kTile) * unit_tiles;
  const float scale = block.p.args.scale, shift = block.p.args.shift;
  for (int tile = threadIdx.x / kWarp; tile < tiles; tile += kEpochWarps) {
    const int row = tile / unit_tiles * kTile, unit = tile % unit_tiles * kTile;
    const unsigned char* images = block.images(step) + row * l.image_stride;
    const float* weights = block.floats(l.w1) + unit * l.weight_stride;
    float sums[kTile * kTile] = {};
    for (int q = lane; q < quads; q += kWarp) {
      float4 w[kTile];
#pragma unroll
      for (int u = 0; u < kTile; ++u)
        w[u] = *reinterpret_cast<const float4*>(weights + u * l.weight_stride + q * 4);
#pragma unroll
      for (int b = 0; b < kTile; ++b) {
        float x[4];
        unpack_image(*reinterpret_cast<const unsigned*>(images + b * l.image_stride + q * 4), scale, shift,
                     x);
#pragma unroll
        for (int u = 0; u < kTile; ++u) {
          float& sum = sums[b * kTile + u];
          sum += x[0] * w[u].x;
          sum += x[1] * w[u].y;
          sum += x[2] * w[u].z;
          sum += x[3] * w[u].w;
        }
      }
    }
    sum_over_lanes<kTile * kTile / 2>(sums);
    const int b = lane / 4, u = lane % 4 * 2;
    const float* bias = block.floats(l.b1) + unit + u;
    *reinterpret_cast<float2*>(block.floats(l.hidden_values) + (row + b) * l.hidden_stride + unit + u) =
        make_float2(relu_value(sums[0] + bias[0]), relu_value(sums[1] + bias[1]));
  }
}

// The contribution of the block's units to the logits.
__device__ __forceinline__ void compute_partial_logits(const EpochBlock& block, int step) {
  const EpochLayout& l = block.l;
  const float *hidden = block.floats(l.hidden_values), *w2 = block.floats(l.w2);
  for (int i = threadIdx.x; i < block.batch_of(step) * l.classes; i += kEpochThreads) {
    const int b = i / l.classes, c = i - b * l.classes;
    float sum = 0;
#pragma unroll 8
    for (int u = 0; u < l.unit_rows; ++u) sum += hidden[b * l.hidden_stride + u] * w2[u * l.class_stride + c];
    block.floats(l.partial)[b * l.class_stride + c] = sum;
  }
}

struct WarpSum {
  float value;
  __device__ __forceinline__ WarpSum shuffled(int by) const {
    return {__shfl_xor_sync(0xffffffffu, value, by)};
  }
};
__device__ __forceinline__ float sum_warp(float value) {
  return reduce_group<kWarp>(WarpSum{value}, [](WarpSum a, WarpSum b) { return WarpSum{a.value + b.value}; })
      .value;
}
__device__ __forceinline__ float largest_of_warp(float value) {
  return reduce_group<kWarp>(WarpSum{value},
                             [](WarpSum a, WarpSum b) { return WarpSum{max(a.value, b.value)}; })
      .value;
}

// How many rows of the batch have a label that is not ignored. A whole warp calls it.
__device__ __forceinline__ float counted_rows(const EpochBlock& block, int step) {
  const int64_t* labels = block.labels(step);
  float counted = 0;
  for (int b = threadIdx.x % kWarp; b < block.batch_of(step); b += kWarp)
    counted += labels[b] != block.p.args.ignore_index;
  return sum_warp(counted);
}

// Loss and gradient of the logits for the block's share of the rows, one warp per row and one lane per class;
// the gradient goes to all blocks of the cluster, the loss to the first. Both read and write other blocks'
// memory.
__device__ __forceinline__ void compute_loss(const EpochBlock& block, int step) {
  const EpochLayout& l = block.l;
  const int c = threadIdx.x % kWarp;
  const bool has_class = c < l.classes;
  const float counted = counted_rows(block, step);
  for (int i = threadIdx.x / kWarp;; i += kEpochWarps) {
    const int b = block.rank + i * l.cluster, at = b * l.class_stride + c;
    if (b >= block.batch_of(step)) break;
    const int64_t label = block.labels(step)[b];
    const bool counts = label != block.p.args.ignore_index;
    float logit = -INFINITY;
    if (has_class) {
      logit = 0;
      for (int rank = 0; rank < l.cluster; ++rank)
        logit += ptx::map_shared_rank(block.floats(l.partial), static_cast<unsigned>(rank))[at];
      logit += block.floats(l.b2)[c];
    }
    const float largest = largest_of_warp(logit), power = expf(logit - largest), total = sum_warp(power);
    if (has_class) {
      const float gradient = counts ? (power / total - (c == label ? 1.0f : 0.0f)) / counted : 0.0f;
      for (int rank = 0; rank < l.cluster; ++rank)
        ptx::map_shared_rank(block.floats(l.logits_gradient), static_cast<unsigned>(rank))[at] = gradient;
    }
    if (counts ? c == label : c == 0)
      ptx::map_shared_rank(block.floats(l.row_losses), 0)[b] =
          counts ? logf(total) + (largest - logit) : 0.0f;
  }
}

// The mean of the rows' losses; one warp of the first block.
__device__ __forceinline__ void store_loss(const EpochBlock& block, int step) {
  const float* losses = block.floats(block.l.row_losses);
  float sum = 0;
  for (int b = threadIdx.x % kWarp; b < block.batch_of(step); b += kWarp) sum += losses[b];
  sum = sum_warp(sum);
  const float counted = counted_rows(block, step);
  if (threadIdx.x % kWarp == 0) block.p.args.losses[step] = sum / counted;
}

// The gradient at the hidden layer, before its activation.
__device__ __forceinline__ void compute_hidden_gradient(const EpochBlock& block, int step) {
  const EpochLayout& l = block.l;
  const float *w2 = block.floats(l.w2), *logits_gradient = block.floats(l.logits_gradient);
  for (int i = threadIdx.x; i < block.batch_of(step) * l.unit_rows; i += kEpochThreads) {
    const int b = i / l.unit_rows, u = i - b * l.unit_rows, at = b * l.hidden_stride + u;
    float sum = 0;
    for (int c = 0; c < l.classes; ++c)
      sum += logits_gradient[b * l.class_stride + c] * w2[u * l.class_stride + c];
    block.floats(l.hidden_gradient)[at] = relu_gradient(sum, block.floats(l.hidden_values)[at]);
  }
}

}  // namespace fastnn::cuda
