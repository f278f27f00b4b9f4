// Many classes: a row belongs to a block, or a cluster of blocks (cluster_classes.cuh), which reads it from
// device memory once and keeps it in shared memory until the gradient is written. The part of a longer row
// that does not fit is read again.
#pragma once

#include "core/cuda/pack.cuh"
#include "ops/cross_entropy/moments.cuh"
#include "ops/cross_entropy/rows.cuh"

namespace fastnn::cuda {

namespace {

// The limit of the indices within a row, and more than any row seen in practice.
constexpr int64_t kMostClasses = int64_t{1} << 30;

// In the dynamic shared memory of a block, before the packs that it keeps.
template <class A, bool kDense>
struct alignas(kPackBytes) RowShared {
  Sum sums[kMaxWarps];
  Moments<A, kDense> of_warps[kMaxWarps];
  Moments<A, kDense> of_block[2];  // for the other blocks of its cluster, alternating
};

// The blocks that share a row: only this one.
struct OneBlock {
  static constexpr int blocks = 1, rank = 0;
  template <class M>
  __device__ __forceinline__ M combine(const M& of_block) const {
    return of_block;
  }
  __device__ __forceinline__ void leave() const {}
};

// Adds kCount logits, the classes k to k + kCount - 1, at `offset` in arrays with the gradient's layout.
template <int kCount, bool kDense, class T>
__device__ __forceinline__ void add(const Rows<T>& p, const Acc<T>* x, int64_t offset, int k,
                                    Moments<Acc<T>, kDense>& m) {
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

// For up to kMostClasses classes. blockDim.x threads, a multiple of 32; dynamic shared memory for RowShared
// and `kept` packs.
template <bool kDense, class T, class Team>
__device__ __forceinline__ void compute_rows(const Rows<T>& p, int kept, Team team) {
  using A = Acc<T>;
  constexpr int kSize = kPackSize<T>;
  auto& shared = *ptx::dynamic_shared<RowShared<A, kDense>>();
  uint4* kept_packs = reinterpret_cast<uint4*>(&shared + 1);
  const CrossEntropyScales scales = read_scales(p, shared.sums);
  const A gradient_scale = static_cast<A>(scales.gradient), z_scale = static_cast<A>(scales.z);
  const int classes = static_cast<int>(p.args.classes);
  const int64_t rows = p.rows();
  const int thread = threadIdx.x, threads = blockDim.x;
  const unsigned first_row = blockIdx.x / team.blocks, step = gridDim.x / team.blocks;
  LossSums<A> sums;

  for (int64_t row = first_row; row < rows; row += step) {
    const T* x = static_cast<const T*>(p.args.logits) + row * p.args.outer_stride;
    const int64_t offset = row * classes;
    T* g = p.args.gradient ? static_cast<T*>(p.args.gradient) + offset : nullptr;
    const RowTarget<A> target = read_target(p, row);
    if (target.ignored) {
      if (thread == 0) finish_row(p, row, 0, 0, sums);
      for (int k = team.rank * threads + thread; g && k < classes; k += threads * team.blocks)
        g[k] = from_acc<T>(A(0));
      continue;
    }
    const A at_target = target.index < 0 ? A(0) : to_acc(x[target.index]);  // before gradients overwrite it

    // Classes before the first aligned address, whole packs, and the rest: thread i of the first block has
    // the i-th of the single ones, and thread i of each block pack i, i + threads and so on of its part.
    // Whatever it reads again later has been overwritten by this thread only.
    const int head = elements_to_alignment(x);  // there are always more classes
    const int packs = (classes - head) / kSize, tail = head + packs * kSize;
    const int singles = team.rank == 0 ? head + (classes - tail) : 0;
    const int single = thread < head ? thread : tail + (thread - head);
    const int part = ceil_div(packs, team.blocks);
    const int begin = min(team.rank * part, packs), end = min(begin + part, packs);

    auto mine = Moments<A, kDense>::of_nothing();
    A single_logit = 0;
    if (thread < singles) {
      single_logit = to_acc(x[single]);
      add<1>(p, &single_logit, offset + single, single, mine);
    }
#pragma unroll 4
    for (int i = begin + thread; i < end; i += threads) {
      const int k = head + i * kSize;
      const Pack<T> loaded = load_pack(x + k);
      if (i - begin < kept) kept_packs[i - begin] = reinterpret_cast<const uint4&>(loaded);
      A values[kSize];
      unpack(loaded, values);
      add<kSize>(p, values, offset + k, k, mine);
    }
    const Moments<A, kDense> m = team.combine(combine_block(mine, shared.of_warps));

    const A log_total = log(m.total), lse = m.largest + log_total;
    const A pulls = m.pulls + target.weight;
    const A distance = m.distance + (target.index < 0 ? A(0) : target.weight * (m.largest - at_target));
    if (thread == 0 && team.rank == 0)
      finish_row(p, row, target.bad ? A(NAN) : row_loss(pulls, log_total, distance), lse, sums);
    if (!g) continue;

    const A factor = target.bad ? A(NAN) : softmax_factor<A, A>(pulls, lse, m.total, gradient_scale, z_scale);
    if (thread < singles) {
      to_gradient<1, kDense>(p, &single_logit, offset + single, single, m.largest, factor, gradient_scale,
                             target);
      g[single] = from_acc<T>(single_logit);
    }
    const bool packed = elements_to_alignment(g + head) == 0;
    for (int i = begin + thread; i < end; i += threads) {
      const int k = head + i * kSize;
      Pack<T> loaded;
      if (i - begin < kept)
        reinterpret_cast<uint4&>(loaded) = kept_packs[i - begin];
      else
        loaded = load_pack(x + k);
      A values[kSize];
      unpack(loaded, values);
      to_gradient<kSize, kDense>(p, values, offset + k, k, m.largest, factor, gradient_scale, target);
      const Pack<T> result = pack<T>(values);
      if (packed) {
        store_pack_streaming(g + k, result);
      } else {
#pragma unroll
        for (int e = 0; e < kSize; ++e) g[k + e] = result.at[e];
      }
    }
  }
  team.leave();
  if (team.rank == 0) finish_loss(p, sums, scales, shared.sums, first_row, step);
}

template <class T, bool kDense>
__global__ void __launch_bounds__(1024, 1) many_classes(const __grid_constant__ Rows<T> p, int kept) {
  compute_rows<kDense>(p, kept, OneBlock{});
}

}  // namespace

}  // namespace fastnn::cuda
