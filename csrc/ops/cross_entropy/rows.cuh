// What the rows of one call share on the device, and what is done once a row.
#pragma once

#include "core/cuda/dtype.cuh"
#include "core/cuda/reduce.cuh"
#include "ops/cross_entropy/cross_entropy_cuda.h"
#include "ops/cross_entropy/formulas.h"

namespace fastnn::cuda {

namespace {

template <class T>
struct Rows {
  using A = Acc<T>;
  CrossEntropyArgs args;
  CrossEntropyScratch* scratch;
  BadIndex* bad;
  const T* probabilities;  // (outer, classes, inner), or null for class indices
  int count_blocks;
  bool dense;      // rows have terms in every class: probabilities or smoothed indices
  A keep, smooth;  // 1 - e and e/C of the label smoothing

  __device__ __forceinline__ int64_t rows() const { return args.outer * args.inner; }
  __device__ __forceinline__ int64_t index_of(int64_t row) const {
    return args.target_dtype == DType::u8 ? int64_t{static_cast<const uint8_t*>(args.target)[row]}
                                          : static_cast<const int64_t*>(args.target)[row];
  }
  __device__ __forceinline__ bool in_range(int64_t index) const { return index >= 0 && index < args.classes; }
  __device__ __forceinline__ A weight_of(int64_t k) const {
    return args.weight ? to_acc(static_cast<const T*>(args.weight)[k]) : A(1);
  }
  // q_k of a row with terms in every class, but for what a class index adds; `at` as in `probabilities`.
  __device__ __forceinline__ A dense_q(int64_t at, int64_t k) const {
    return smoothed_probability(probabilities ? to_acc(probabilities[at]) : A(0), weight_of(k), keep, smooth);
  }
};

// The target of one row.
template <class A>
struct RowTarget {
  int64_t index;  // -1 for probabilities
  A weight;       // (1 - e) w_y, or 0
  bool ignored, bad;
};

template <class T>
__device__ __forceinline__ RowTarget<Acc<T>> read_target(const Rows<T>& p, int64_t row) {
  if (p.probabilities) return {-1, 0, false, false};
  const int64_t index = p.index_of(row);
  if (index == p.args.ignore_index) return {-1, 0, true, false};
  if (!p.in_range(index)) return {-1, 0, false, true};
  return {index, p.keep * p.weight_of(index), false, false};
}

// What the gradient is scaled with, from what the counting kernel left.
template <class T>
__device__ CrossEntropyScales read_scales(const Rows<T>& p, Sum* slots) {
  double rows = 0, weight = 0;
  for (int i = threadIdx.x; i < p.count_blocks; i += blockDim.x) {
    rows += p.scratch->rows[i];
    weight += p.scratch->weight[i];
  }
  rows = sum_block(rows, slots);
  weight = sum_block(weight, slots);
  CrossEntropyScales scales = cross_entropy_scales(p.args.reduction == Reduction::mean,
                                                   p.args.dtype == DType::f16, p.args.z_loss, rows, weight);
  if (blockIdx.x == 0 && threadIdx.x == 0) p.scratch->late = scales.late;
  return scales;
}

// Sums that the threads of a block keep of their rows' losses.
struct LossSums {
  double loss = 0, square = 0;
};

template <class T>
__device__ __forceinline__ void finish_row(const Rows<T>& p, int64_t row, double loss, double lse,
                                           LossSums& sums) {
  if (p.args.reduction == Reduction::none) {
    const double z_loss = p.args.z_loss == 0 ? 0 : p.args.z_loss * lse * lse;
    static_cast<T*>(p.args.loss)[row] = from_acc<T>(static_cast<Acc<T>>(loss + z_loss));
  } else {
    sums.loss += loss;
    sums.square += lse * lse;
  }
}

// Adds up the rows of all blocks, in the order of the blocks, and writes the loss. Called by `blocks` blocks,
// of which this is the one with the number `block`.
template <class T>
__device__ void finish_loss(const Rows<T>& p, LossSums sums, const CrossEntropyScales& scales, Sum* slots,
                            unsigned block, unsigned blocks) {
  if (p.args.reduction == Reduction::none) return;
  const double loss = sum_block(sums.loss, slots), square = sum_block(sums.square, slots);
  if (threadIdx.x == 0) {
    p.scratch->loss[block] = loss;
    p.scratch->square[block] = square;
  }
  if (!is_last_block(&p.scratch->counter, blocks)) return;
  LossSums all;
  double weight = 0;
  for (unsigned i = threadIdx.x; i < blocks; i += blockDim.x) {
    all.loss += __ldcg(&p.scratch->loss[i]);  // what other blocks wrote is in the second cache
    all.square += __ldcg(&p.scratch->square[i]);
  }
  for (int i = threadIdx.x; i < p.count_blocks; i += blockDim.x) weight += p.scratch->weight[i];
  all.loss = sum_block(all.loss, slots);
  all.square = sum_block(all.square, slots);
  weight = sum_block(weight, slots);
  if (threadIdx.x != 0) return;
  p.scratch->counter = 0;  // for the next chunk
  all.loss += p.scratch->loss_so_far;
  all.square += p.scratch->square_so_far;
  p.scratch->loss_so_far = all.loss;
  p.scratch->square_so_far = all.square;
  double total = p.args.reduction == Reduction::mean ? all.loss / weight : all.loss;
  if (p.args.z_loss != 0) total += p.args.z_loss * all.square * scales.square;
  *static_cast<T*>(p.args.loss) = from_acc<T>(static_cast<Acc<T>>(total));
}

}  // namespace

}  // namespace fastnn::cuda
