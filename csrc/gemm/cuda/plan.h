// Which kernel computes a product, and in how many parts along K.
//
// Every number here is derived, none has been measured on a device.
#pragma once

#include "gemm/cuda/product.h"

namespace fastnn::cuda {

struct Plan {
  int tile = 0;        // a block computes tile x tile values of C
  int64_t splits = 1;  // blocks that share the sums of a tile
  int64_t chunk = 0;   // of K, for each of them
};

// A shorter part of K costs more to add up (a write and a read of each value) than to compute.
constexpr int64_t kShortestChunk = 64;

inline int64_t tiles_of(const Product& p, int tile) {
  const int64_t rows = (p.m + tile - 1) / tile, columns = (p.n + tile - 1) / tile;
  return p.batches * (p.symmetric ? rows * (rows + 1) / 2 : rows * columns);
}

// The largest tile with which every multiprocessor gets a block, with K split if necessary, or the smallest.
inline Plan plan_product(DType dtype, Float32 float32, const Product& p, int multiprocessors) {
  constexpr int kSizes[] = {128, 64, 32};
  Plan plan;
  const int64_t side = p.m < p.n ? p.m : p.n;
  int largest = 128, smallest = 32;
  if (dtype == DType::bf16 || dtype == DType::f16)
    smallest = 64;
  else if (dtype == DType::f64)
    largest = 64;
  else if (float32 != Float32::plain)
    smallest = 128;
  for (const int tile : kSizes) {
    if (tile > largest || tile < smallest || (tile > smallest && side <= tile / 2)) continue;
    const int64_t tiles = tiles_of(p, tile);
    const int64_t wanted = tiles ? multiprocessors / tiles : 1, possible = p.k / kShortestChunk;
    const int64_t splits = wanted < possible ? wanted : possible;
    plan.tile = tile;
    plan.splits = splits > 1 ? splits : 1;
    if (tiles * plan.splits * 4 >= int64_t{multiprocessors} * 3) break;
  }
  // Whole steps of the main loops, which take 16 or 32 of K.
  constexpr int64_t kStep = 32;
  const int64_t steps = (p.k + kStep - 1) / kStep;
  plan.chunk = (steps + plan.splits - 1) / plan.splits * kStep;
  if (plan.chunk > 0) plan.splits = (p.k + plan.chunk - 1) / plan.chunk;
  return plan;
}

}  // namespace fastnn::cuda
