// Many classes: one block a row, which it reads from device memory once and keeps in shared memory until the
// gradient is written. Of a row that is longer than shared memory the rest is read again.
#pragma once

#include "core/cuda/pack.cuh"
#include "ops/cross_entropy/rows.cuh"

namespace fastnn::cuda {

namespace {

// What the indices within a row are good for, and more than any row that has been seen.
constexpr int64_t kMostClasses = int64_t{1} << 30;

// exp of a number that is not above 0, in two instructions. x log2(e) is rounded once, so the relative error
// is about 1e-7 (1 + |x|): no more than 1e-7 of the largest term, which is 1. Subnormal results are 0.
__device__ __forceinline__ float exp_negative(float x) {
  return ptx::exp2_approximate(x * 1.44269504088896341f);
}
__device__ __forceinline__ double exp_negative(double x) { return exp(x); }

// Maximum so far, and the sums relative to it: total of exp(x - largest), pulls of q, distance of
// q (largest - x).
template <class V>
struct Moments {
  V largest, total, pulls, distance;

  // What is subtracted from x: until something above -inf has come, exp(-inf - 0) = 0 rather than
  // exp(-inf + inf) = NaN.
  __device__ __forceinline__ static V pivot(V largest) { return largest == -V(INFINITY) ? V(0) : largest; }

  // The same sums, relative to a maximum that is not smaller.
  __device__ __forceinline__ void raise(V to) {
    if (!(largest < to)) return;
    total *= exp_negative(largest - to);
    distance += pulls * (to - pivot(largest));
    largest = to;
  }

  __device__ __forceinline__ Moments shuffled(int step) const {
    constexpr unsigned kAll = 0xffffffffu;
    return {__shfl_xor_sync(kAll, largest, step), __shfl_xor_sync(kAll, total, step),
            __shfl_xor_sync(kAll, pulls, step), __shfl_xor_sync(kAll, distance, step)};
  }
};

template <class V>
__device__ __forceinline__ Moments<V> merge(Moments<V> a, Moments<V> b) {
  a.raise(b.largest);
  b.raise(a.largest);
  return {a.largest, a.total + b.total, a.pulls + b.pulls, a.distance + b.distance};
}

// Adds kCount logits, the classes k to k + kCount - 1, that lie at `offset` of what has the gradient's
// layout.
template <int kCount, bool kDense, class T>
__device__ __forceinline__ void add(const Rows<T>& p, const Acc<T>* x, int64_t offset, int k,
                                    Moments<Acc<T>>& m) {
  using A = Acc<T>;
  A largest = x[0];
#pragma unroll
  for (int i = 1; i < kCount; ++i) largest = largest < x[i] || largest != largest ? x[i] : largest;
  m.raise(largest);  // a NaN never becomes the maximum and makes the sum NaN
  const A pivot = m.pivot(m.largest);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    m.total += exp_negative(x[i] - pivot);
    if constexpr (kDense) {
      const A q = p.dense_q(offset + i, k + i);
      m.pulls += q;
      m.distance += q * (pivot - x[i]);
    }
  }
}

// Turns the logits of the classes k to k + kCount - 1 into their gradients.
template <int kCount, bool kDense, class T>
__device__ __forceinline__ void to_gradient(const Rows<T>& p, Acc<T>* x, int64_t offset, int k,
                                            Acc<T> largest, Acc<T> factor, Acc<T> scale,
                                            const RowTarget<Acc<T>>& target) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    x[i] = exp_negative(x[i] - largest) * factor;
    if constexpr (kDense) x[i] -= p.dense_q(offset + i, k + i) * scale;
  }
  if (target.index < k || target.index >= k + kCount) return;
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    if (k + i == target.index) x[i] -= target.weight * scale;
}

// For up to kMostClasses classes. blockDim.x threads, a multiple of 32; dynamic shared memory for `kept`
// packs.
template <class T, bool kDense>
__global__ void __launch_bounds__(1024, 1) many_classes(const __grid_constant__ Rows<T> p, int kept) {
  using A = Acc<T>;
  constexpr int kSize = kPackSize<T>;
  uint4* kept_packs = ptx::dynamic_shared<uint4>();
  __shared__ Sum slots[kMaxWarps];
  __shared__ Moments<double> moment_slots[kMaxWarps];
  const CrossEntropyScales scales = read_scales(p, slots);
  const A gradient_scale = static_cast<A>(scales.gradient), z_scale = static_cast<A>(scales.z);
  const int classes = static_cast<int>(p.args.classes);
  const int64_t rows = p.rows();
  const int thread = threadIdx.x, threads = blockDim.x;
  LossSums sums;

  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* x = static_cast<const T*>(p.args.logits) + row * p.args.outer_stride;
    const int64_t offset = row * classes;
    T* g = p.args.gradient ? static_cast<T*>(p.args.gradient) + offset : nullptr;
    const RowTarget<A> target = read_target(p, row);
    if (target.ignored) {
      if (thread == 0) finish_row(p, row, 0, 0, sums);
      for (int k = thread; g && k < classes; k += threads) g[k] = from_acc<T>(A(0));
      continue;
    }
    const A at_target = target.index < 0 ? A(0) : to_acc(x[target.index]);  // before gradients overwrite it

    // Classes before the first aligned address, whole packs, and the rest: thread i has the i-th of the
    // single ones, and pack i, i + threads and so on. What it reads again later only it has overwritten by
    // then.
    const int head = elements_to_alignment(x);  // there are more classes than that
    const int packs = (classes - head) / kSize, tail = head + packs * kSize;
    const int singles = head + (classes - tail);
    const int single = thread < head ? thread : tail + (thread - head);

    Moments<A> mine = {-A(INFINITY), 0, 0, 0};
    A single_logit = 0;
    if (thread < singles) {
      single_logit = to_acc(x[single]);
      add<1, kDense>(p, &single_logit, offset + single, single, mine);
    }
#pragma unroll 4
    for (int i = thread; i < packs; i += threads) {
      const int k = head + i * kSize;
      const Pack<T> loaded = load_pack(x + k);
      if (i < kept) kept_packs[i] = reinterpret_cast<const uint4&>(loaded);
      A values[kSize];
      unpack(loaded, values);
      add<kSize, kDense>(p, values, offset + k, k, mine);
    }
    const Moments<double> m =
        reduce_block(Moments<double>{mine.largest, mine.total, mine.pulls, mine.distance}, moment_slots,
                     [](const Moments<double>& a, const Moments<double>& b) { return merge(a, b); });

    const A largest = static_cast<A>(m.largest);
    const double log_total = log(m.total), lse = m.largest + log_total;
    const double pulls = m.pulls + target.weight;
    const double distance = m.distance + (target.index < 0 ? A(0) : target.weight * (largest - at_target));
    if (thread == 0) finish_row(p, row, target.bad ? NAN : row_loss(pulls, log_total, distance), lse, sums);
    if (!g) continue;

    const A factor =
        target.bad
            ? A(NAN)
            : static_cast<A>(softmax_factor<double, double>(pulls, lse, m.total, gradient_scale, z_scale));
    if (thread < singles) {
      to_gradient<1, kDense>(p, &single_logit, offset + single, single, largest, factor, gradient_scale,
                             target);
      g[single] = from_acc<T>(single_logit);
    }
    const bool packed = elements_to_alignment(g + head) == 0;
    for (int i = thread; i < packs; i += threads) {
      const int k = head + i * kSize;
      Pack<T> loaded;
      if (i < kept)
        reinterpret_cast<uint4&>(loaded) = kept_packs[i];
      else
        loaded = load_pack(x + k);
      A values[kSize];
      unpack(loaded, values);
      to_gradient<kSize, kDense>(p, values, offset + k, k, largest, factor, gradient_scale, target);
      const Pack<T> result = pack<T>(values);
      if (packed) {
        store_pack_streaming(g + k, result);
      } else {
#pragma unroll
        for (int e = 0; e < kSize; ++e) g[k + e] = result.at[e];
      }
    }
  }
  finish_loss(p, sums, scales, slots);
}

}  // namespace

}  // namespace fastnn::cuda
