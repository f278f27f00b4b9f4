// What the rows of one call share on the device, and what is done once per row.
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
  // q_k of a row with terms in every class, without the contribution of a class index; `at` as in
  // `probabilities`.
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

// The scales of the gradient, from the results of the counting kernel.
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

// A sum of many numbers, together with its rounding errors: in float32 as accurate as in float64, of which
// most devices have little throughput.
template <class A>
struct LongSum {
  A sum = 0, rest = 0;
  __device__ __forceinline__ void add(A x) {
    const A before = sum;
    sum = before + x;
    const A added = sum - before;
    rest += (before - (sum - added)) + (x - added);
  }
  __device__ __forceinline__ double value() const {
    return rest == rest ? double{sum} + double{rest} : double{sum};  // an infinity has no remainder
  }
};
template <>
struct LongSum<double> {
  double sum = 0;
  __device__ __forceinline__ void add(double x) { sum += x; }
  __device__ __forceinline__ double value() const { return sum; }
};

// Sums of their rows' losses, kept by the threads of a block.
template <class A>
struct LossSums {
  LongSum<A> loss, square;
};

template <class T>
__device__ __forceinline__ void finish_row(const Rows<T>& p, int64_t row, Acc<T> loss, Acc<T> lse,
                                           LossSums<Acc<T>>& sums) {
  using A = Acc<T>;
  if (p.args.reduction == Reduction::none) {
    const A z_loss = p.args.z_loss == 0 ? A(0) : static_cast<A>(p.args.z_loss) * lse * lse;
    static_cast<T*>(p.args.loss)[row] = from_acc<T>(loss + z_loss);
  } else {
    sums.loss.add(loss);
    sums.square.add(lse * lse);
  }
}

// Adds up the rows of all blocks, in the order of the blocks, and writes the loss. Called by `blocks` blocks,
// of which this is the one with the number `block`.
template <class T>
__device__ void finish_loss(const Rows<T>& p, const LossSums<Acc<T>>& sums, const CrossEntropyScales& scales,
                            Sum* slots, unsigned block, unsigned blocks) {
  if (p.args.reduction == Reduction::none) return;
  double loss = sum_block(sums.loss.value(), slots), square = sum_block(sums.square.value(), slots);
  if (threadIdx.x == 0) {
    p.scratch->loss[block] = loss;
    p.scratch->square[block] = square;
  }
  if (!is_last_block(&p.scratch->counter, blocks)) return;
  double weight = 0;
  loss = square = 0;
  for (unsigned i = threadIdx.x; i < blocks; i += blockDim.x) {
    loss += __ldcg(&p.scratch->loss[i]);  // what other blocks wrote is in L2
    square += __ldcg(&p.scratch->square[i]);
  }
  for (int i = threadIdx.x; i < p.count_blocks; i += blockDim.x) weight += p.scratch->weight[i];
  loss = sum_block(loss, slots);
  square = sum_block(square, slots);
  weight = sum_block(weight, slots);
  if (threadIdx.x != 0) return;
  p.scratch->counter = 0;  // for the next chunk
  loss += p.scratch->loss_so_far;
  square += p.scratch->square_so_far;
  p.scratch->loss_so_far = loss;
  p.scratch->square_so_far = square;
  double total = p.args.reduction == Reduction::mean ? loss / weight : loss;
  if (p.args.z_loss != 0) total += p.args.z_loss * square * scales.square;
  *static_cast<T*>(p.args.loss) = from_acc<T>(static_cast<Acc<T>>(total));
}

}  // namespace

}  // namespace fastnn::cuda
