// Few classes, or classes that are strided: kGroup neighbouring lanes have one row. It is read from device
// memory once; its second and third reading find it in the first cache.
#pragma once

#include "ops/cross_entropy/rows.cuh"

namespace fastnn::cuda {

namespace {

constexpr int kFewThreads = 256;

template <class A>
struct Largest {
  A value;
  __device__ __forceinline__ Largest shuffled(int step) const {
    return {__shfl_xor_sync(0xffffffffu, value, step)};
  }
};

template <int kGroup, class A>
__device__ __forceinline__ A group_max(A value) {
  return reduce_group<kGroup>(
             Largest<A>{value},
             [](Largest<A> a, Largest<A> b) { return Largest<A>{a.value < b.value ? b.value : a.value}; })
      .value;
}

template <int kGroup>
__device__ __forceinline__ double group_sum(double value) {
  return reduce_group<kGroup>(Sum{value}, [](Sum a, Sum b) { return add(a, b); }).value;
}

// All lanes of a warp go through every statement that passes values between them, rows or no rows.
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
  LossSums sums;

  for (int64_t first = int64_t{blockIdx.x} * kRowsPerBlock; first < rows;
       first += int64_t{gridDim.x} * kRowsPerBlock) {
    const int64_t row = first + threadIdx.x / kGroup;
    const bool present = row < rows;
    const int64_t outer = inner == 1 ? row : row / inner, within = row - outer * inner;
    const T* x = logits + outer * p.args.outer_stride + within;  // the class k is at x[k * inner]
    const int64_t offset = outer * classes * inner + within;     // of all else
    const RowTarget<A> target = present ? read_target(p, row) : RowTarget<A>{-1, 0, true, false};
    const int64_t end = present && !target.ignored ? classes : 0;

    A largest = -INFINITY;  // a NaN never becomes the maximum and makes the sum NaN
    for (int64_t k = lane; k < end; k += kGroup) {
      const A v = to_acc(x[k * inner]);
      largest = largest < v ? v : largest;
    }
    largest = group_max<kGroup>(largest);

    double lane_total = 0, lane_pulls = 0, lane_distance = 0;  // a lane may have thousands of classes
    for (int64_t k = lane; k < end; k += kGroup) {
      const A v = to_acc(x[k * inner]);
      lane_total += exp(v - largest);
      if (p.dense) {
        const A q = p.dense_q(offset + k * inner, k);
        lane_pulls += q;
        lane_distance += q * (largest - v);
      }
      if (k == target.index) {
        lane_pulls += target.weight;
        lane_distance += target.weight * (largest - v);
      }
    }
    const double total = group_sum<kGroup>(lane_total), pulls = group_sum<kGroup>(lane_pulls);
    const double distance = group_sum<kGroup>(lane_distance);
    const double log_total = log(total), lse = largest + log_total;
    if (present && lane == 0) {
      if (target.ignored)
        finish_row(p, row, 0, 0, sums);
      else
        finish_row(p, row, target.bad ? NAN : row_loss(pulls, log_total, distance), lse, sums);
    }
    if (!gradient || !present) continue;
    const A factor =
        target.bad
            ? A(NAN)
            : static_cast<A>(softmax_factor<double, double>(pulls, lse, total, gradient_scale, z_scale));
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
