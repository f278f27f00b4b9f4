// Few classes, or classes that are strided: kGroup neighbouring lanes share one row. It is read from device
// memory once; the second and third reads hit L1.
#pragma once

#include "ops/cross_entropy/rows.cuh"

namespace fastnn::cuda {

namespace {

constexpr int kFewThreads = 256;

// Classes that a lane adds up at a time: the rounding error of two levels of sums grows with the root of
// their number.
constexpr int kSummedAtATime = 64;

// All lanes of a warp execute every statement that exchanges values, whether or not they have a row.
template <class T, int kGroup>
__global__ void __launch_bounds__(kFewThreads, 3) few_classes(const __grid_constant__ Rows<T> p) {
  using A = Acc<T>;
  __shared__ Sum slots[kMaxWarps];
  const CrossEntropyScales scales = read_scales(p, slots);
  const A gradient_scale = static_cast<A>(scales.gradient), z_scale = static_cast<A>(scales.z);
  constexpr int kRowsPerBlock = kFewThreads / kGroup;
  const int lane = threadIdx.x % kGroup;
  const int64_t classes = p.args.classes, inner = p.args.inner, rows = p.rows();
  const T* logits = static_cast<const T*>(p.args.logits);
  T* gradient = static_cast<T*>(p.args.gradient);
  LossSums<A> sums;

  for (int64_t first = int64_t{blockIdx.x} * kRowsPerBlock; first < rows;
       first += int64_t{gridDim.x} * kRowsPerBlock) {
    const int64_t row = first + threadIdx.x / kGroup;
    const bool present = row < rows;
    const int64_t outer = inner == 1 ? row : row / inner, within = row - outer * inner;
    const T* x = logits + outer * p.args.outer_stride + within;  // the class k is at x[k * inner]
    const int64_t offset = outer * classes * inner + within;     // of everything else
    const RowTarget<A> target = present ? read_target(p, row) : RowTarget<A>{-1, 0, true, false};
    const int64_t end = present && !target.ignored ? classes : 0;

    A largest = -INFINITY;  // a NaN never becomes the maximum and makes the sum NaN
    for (int64_t k = lane; k < end; k += kGroup) {
      const A v = to_acc(x[k * inner]);
      largest = largest < v ? v : largest;
    }
    largest = max_group<kGroup>(largest);

    A total = 0, pulls = 0, distance = 0;
    for (int64_t begin = lane; begin < end; begin += int64_t{kGroup} * kSummedAtATime) {
      const int64_t before = min(begin + int64_t{kGroup} * kSummedAtATime, end);
      A some_total = 0, some_pulls = 0, some_distance = 0;
      for (int64_t k = begin; k < before; k += kGroup) {
        const A v = to_acc(x[k * inner]);
        some_total += exp(v - largest);
        if (p.dense) {
          const A q = p.dense_q(offset + k * inner, k);
          some_pulls += q;
          some_distance += q * (largest - v);
        }
        if (k == target.index) {
          pulls += target.weight;
          distance += target.weight * (largest - v);
        }
      }
      total += some_total;
      pulls += some_pulls;
      distance += some_distance;
    }
    total = sum_group<kGroup>(total);
    pulls = sum_group<kGroup>(pulls);
    distance = sum_group<kGroup>(distance);
    const A log_total = log(total), lse = largest + log_total;
    if (present && lane == 0) {
      if (target.ignored)
        finish_row(p, row, 0, 0, sums);
      else
        finish_row(p, row, target.bad ? A(NAN) : row_loss(pulls, log_total, distance), lse, sums);
    }
    if (!gradient || !present) continue;
    const A factor = target.bad ? A(NAN) : softmax_factor<A, A>(pulls, lse, total, gradient_scale, z_scale);
    for (int64_t k = lane; k < classes; k += kGroup) {
      A g = 0;
      if (!target.ignored) {
        g = exp(to_acc(x[k * inner]) - largest) * factor;
        if (p.dense) g -= p.dense_q(offset + k * inner, k) * gradient_scale;
        if (k == target.index) g -= target.weight * gradient_scale;
      }
      gradient[offset + k * inner] = from_acc<T>(g);
    }
  }
  finish_loss(p, sums, scales, slots, blockIdx.x, gridDim.x);
}

}  // namespace

}  // namespace fastnn::cuda
