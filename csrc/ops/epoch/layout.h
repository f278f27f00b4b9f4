// The shared memory layout of a block of the persistent epoch kernel.
//
// W1, m and v of 784-128-10 take 1.2 MB: a block of a cluster of 16 has 8 of the hidden units, 75 KB, and of
// a cluster of 8 twice that. Two batches of 64 images as bytes are another 100 KB.
//
// Banks (32 of 4 bytes). The two loops that take the time read W1 in packs of 16 bytes and images in words of
// 4, and in both of them the lanes of a warp have consecutive packs of the same row: 8 lanes at a time read
// 128 consecutive bytes of W1, 32 lanes 128 consecutive bytes of an image, whatever the row's length. The
// rows of W2 and of everything that has a column for each class are of odd length, so that lanes with
// consecutive rows and the same class differ in their banks. Rows of the hidden layer are 8 j + 4 floats: the
// up to five rows that lanes of one warp read in the same column are in banks 0, 12, 24, 4, 16 (j odd) or 0,
// 20, 8, 28, 16.
#pragma once

#include <cstdint>

#include "core/cuda/launch.cuh"
#include "ops/adam/adam_update.h"
#include "ops/epoch/epoch_cuda.h"

namespace fastnn::cuda {

constexpr int kTile = 8;  // rows and units of the tile of the hidden layer that a warp computes
constexpr int kMostClusterBlocks = 16;

__host__ __device__ constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

using StepConstants = AdamConstants<float>[kEpochParameters];
static_assert(sizeof(StepConstants) == kEpochStepBytes);

struct EpochLayout {
  int features, hidden, classes, batch, cluster;
  int units;          // of a block; the last ones may have fewer
  int unit_rows;      // the same, in whole tiles
  int weight_stride;  // of a row of W1
  int hidden_stride;  // of a row of the hidden layer
  int class_stride;   // of a row of W2 (one hidden unit), of logits and their gradient
  int image_stride;   // bytes of an image
  int buffers;        // batches of images: the next one is copied while one is used, if two fit
  // In bytes from the start; for the state the value, m and v, one after the other.
  int w1, b1, w2, b2, hidden_values, hidden_gradient, partial, logits_gradient, row_losses, constants, rows,
      labels, images, total;

  __host__ __device__ int w1_size() const { return unit_rows * weight_stride; }
};

// All numbers are at least 1 and small enough for 32 bits.
inline EpochLayout epoch_layout(const EpochShape& shape, int cluster, int buffers) {
  EpochLayout l = {};
  l.features = static_cast<int>(shape.features);
  l.hidden = static_cast<int>(shape.hidden);
  l.classes = static_cast<int>(shape.classes);
  l.batch = static_cast<int>(shape.batch);
  l.cluster = cluster;
  l.buffers = buffers;
  l.units = ceil_div(l.hidden, cluster);
  l.unit_rows = round_up(l.units, kTile);
  l.weight_stride = round_up(l.features, 4);
  l.hidden_stride = l.unit_rows + 4;
  l.class_stride = l.classes | 1;
  l.image_stride = round_up(l.features, 16);
  const int batch_rows = round_up(l.batch, kTile);
  const auto take = [&l](int64_t bytes) {
    const int at = l.total;
    l.total += static_cast<int>((bytes + 15) / 16 * 16);
    return at;
  };
  constexpr int kFloat = sizeof(float), kStates = 3;
  l.w1 = take(int64_t{kStates} * kFloat * l.unit_rows * l.weight_stride);
  l.b1 = take(int64_t{kStates} * kFloat * l.unit_rows);
  l.w2 = take(int64_t{kStates} * kFloat * l.unit_rows * l.class_stride);
  l.b2 = take(int64_t{kStates} * kFloat * l.class_stride);
  l.hidden_values = take(int64_t{kFloat} * batch_rows * l.hidden_stride);
  l.hidden_gradient = take(int64_t{kFloat} * batch_rows * l.hidden_stride);
  l.partial = take(int64_t{kFloat} * batch_rows * l.class_stride);
  l.logits_gradient = take(int64_t{kFloat} * batch_rows * l.class_stride);
  l.row_losses = take(int64_t{kFloat} * batch_rows);
  l.constants = take(int64_t{2} * sizeof(StepConstants));
  l.rows = take(int64_t{2} * sizeof(int64_t) * batch_rows);
  l.labels = take(int64_t{2} * sizeof(int64_t) * batch_rows);
  l.images = take(int64_t{buffers} * batch_rows * l.image_stride);
  return l;
}

}  // namespace fastnn::cuda
