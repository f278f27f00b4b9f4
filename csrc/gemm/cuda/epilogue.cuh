// From a product's sums to its result.
#pragma once

#include "core/activation/activation_scalar.h"
#include "gemm/cuda/kernel.cuh"

namespace fastnn::cuda {

// All activations but ReLU: compiled once per kernel and called, which costs little next to an exponential.
template <class S>
__device__ __attribute__((noinline)) S smooth_activation(Activation activation, S z) {
  S y = z;
  dispatch_activation(activation, [&](auto tag) { y = activate<decltype(tag)::value>(z); });
  return y;
}
template <class S>
__device__ __attribute__((noinline)) S smooth_gradient(Activation activation, S dy, S saved) {
  S dz = dy;
  dispatch_activation(activation,
                      [&](auto tag) { dz = activation_gradient<decltype(tag)::value>(dy, saved); });
  return dz;
}

template <class S>
__device__ __forceinline__ S activated(Activation activation, S z) {
  if (activation == Activation::none) return z;
  return activation == Activation::relu ? activate<Activation::relu>(z) : smooth_activation(activation, z);
}
template <class S>
__device__ __forceinline__ S gradient_before(Activation activation, S dy, S saved) {
  if (activation == Activation::none) return dy;
  return activation == Activation::relu ? activation_gradient<Activation::relu>(dy, saved)
                                        : smooth_gradient(activation, dy, saved);
}

// kCount neighbouring values: one, or a pack at an aligned address.
template <int kCount, class T>
__device__ __forceinline__ void store_values(T* to, const Acc<T> (&v)[kCount]) {
  if constexpr (kCount == 1)
    *to = from_acc<T>(v[0]);
  else
    store_pack(to, pack<T>(v));
}
template <int kCount, class T>
__device__ __forceinline__ void load_values(const T* from, Acc<T> (&v)[kCount]) {
  if constexpr (kCount == 1)
    v[0] = to_acc(*from);
  else
    unpack(load_pack(from), v);
}

// The same number of values of the type of sums, added to the stored ones.
template <int kCount, class S>
__device__ __forceinline__ void add_values(S* to, const S (&v)[kCount]) {
  constexpr int kStep = kCount == 1 ? 1 : kPackSize<S>;
#pragma unroll
  for (int first = 0; first < kCount; first += kStep) {
    S there[kStep];
    load_values<kStep>(to + first, there);
#pragma unroll
    for (int e = 0; e < kStep; ++e) there[e] += v[first + e];
    store_values<kStep>(to + first, there);
  }
}

// Stores the results for the sums v of row i from column j on.
template <class T, int kCount>
__device__ __forceinline__ void finish_values(const Epilogue& out, int64_t m, int64_t n, int64_t batch,
                                              int64_t i, int64_t j, Acc<T> (&v)[kCount]) {
  using S = Acc<T>;
  const int64_t at = (batch * m + i) * n + j;
  const S scale = static_cast<S>(out.scale);
#pragma unroll
  for (int e = 0; e < kCount; ++e) v[e] *= scale;
  if (out.add) return add_values<kCount>(static_cast<S*>(out.y) + at, v);
  if (out.bias) {
    const T* const bias = static_cast<const T*>(out.bias) + j * out.bias_stride;
#pragma unroll
    for (int e = 0; e < kCount; ++e) v[e] += to_acc(bias[e * out.bias_stride]);
  }
  if (out.z) store_values<kCount>(static_cast<T*>(out.z) + at, v);
  if (out.saved.data) {
    const T* const saved = static_cast<const T*>(out.saved.data) + i * out.saved.row + j * out.saved.column;
#pragma unroll
    for (int e = 0; e < kCount; ++e)
      v[e] = gradient_before(out.activation, v[e], to_acc(saved[e * out.saved.column]));
  } else if (out.activation != Activation::none) {
#pragma unroll
    for (int e = 0; e < kCount; ++e) v[e] = activated(out.activation, v[e]);
  }
  store_values<kCount>(static_cast<T*>(out.y) + at, v);
}

template <class T>
__device__ __forceinline__ void finish_row_sum(const Product& p, int64_t i, Acc<T> sum) {
  if (p.out.add)
    static_cast<Acc<T>*>(p.row_sums)[i] += sum;
  else
    static_cast<T*>(p.row_sums)[i] = from_acc<T>(sum);
}

// Rows of the sums of a tile, kTile by kTile, in shared memory.
template <class T, int kTile>
struct Sums {
  using S = Acc<T>;
  // Odd multiples of 32 bytes keep the stores of mma fragments, rows g and columns 2t, free of conflicts.
  static constexpr int kPitch = kTile + 32 / static_cast<int>(sizeof(S));
  static constexpr int kBytes = kTile * kPitch * static_cast<int>(sizeof(S));
};

template <class T, int kTile, int kThreads, int kCount>
__device__ __forceinline__ void store_rows(const Task& task, const Place& place, const Acc<T>* sums) {
  const Product& p = task.product;
  const int rows = extent(p.m - place.i, kTile), columns = extent(p.n - place.j, kTile);
  const int64_t part = (place.split * p.batches + place.batch) * p.m;
  for (int at = static_cast<int>(threadIdx.x) * kCount; at < kTile * kTile; at += kThreads * kCount) {
    const int row = at / kTile, column = at % kTile;
    if (row >= rows || column >= columns) continue;
    Acc<T> v[kCount];
#pragma unroll
    for (int e = 0; e < kCount; ++e) v[e] = sums[row * Sums<T, kTile>::kPitch + column + e];
    const int64_t i = place.i + row, j = place.j + column;
    if (task.splits > 1) {
      Acc<T>* const partials = static_cast<Acc<T>*>(task.partials) + (part + i) * p.n + j;
#pragma unroll
      for (int e = 0; e < kCount; ++e) partials[e] = v[e];
    } else {
      finish_values<T, kCount>(p.out, p.m, p.n, place.batch, i, j, v);
    }
  }
}

// A tile of one triangle and its mirror image: on the diagonal values above it are copies, too.
template <class T, int kTile, int kThreads>
__device__ __forceinline__ void store_mirrored(const Task& task, const Place& place, const Acc<T>* sums) {
  const Product& p = task.product;
  const int rows = extent(p.m - place.i, kTile), columns = extent(p.n - place.j, kTile);
  const Acc<T> scale = static_cast<Acc<T>>(p.out.scale);
  T* const y = static_cast<T*>(p.out.y) + place.batch * p.m * p.n;
  for (int at = static_cast<int>(threadIdx.x); at < kTile * kTile; at += kThreads) {
    const int slow = at / kTile, fast = at % kTile;
    const int64_t i = place.i + slow, j = place.j + fast;
    if (slow < rows && fast < columns && i >= j)
      y[i * p.n + j] = from_acc<T>(sums[slow * Sums<T, kTile>::kPitch + fast] * scale);
    const int64_t below = place.i + fast, left = place.j + slow;
    if (fast < rows && slow < columns && below > left)
      y[left * p.n + below] = from_acc<T>(sums[fast * Sums<T, kTile>::kPitch + slow] * scale);
  }
}

// Stores the sums of a block's tile, which all its threads have written: results, or partial sums.
template <class T, int kTile, int kThreads>
__device__ __forceinline__ void store_tile(const Task& task, const Place& place, const Acc<T>* sums) {
  if (task.product.symmetric && task.splits == 1)
    store_mirrored<T, kTile, kThreads>(task, place, sums);
  else if (task.y_packs)
    store_rows<T, kTile, kThreads, kPackSize<T>>(task, place, sums);
  else
    store_rows<T, kTile, kThreads, 1>(task, place, sums);
}

// Sums of the rows of A, one row a thread, in the blocks that have the first columns of C.
template <class T, class A, int kTile, int kDepth>
struct RowSum {
  Acc<T> sum = 0;
  bool wanted;

  __device__ __forceinline__ RowSum(const Task& task, const Place& place)
      : wanted(task.product.row_sums && place.j == 0 && threadIdx.x < kTile) {}
  __device__ __forceinline__ void add(const T* slice) {
    if (!wanted) return;
#pragma unroll 8
    for (int k = 0; k < kDepth; ++k) sum += to_acc(A::at(slice, static_cast<int>(threadIdx.x), k));
  }
  __device__ __forceinline__ void store(const Task& task, const Place& place) const {
    const int64_t i = place.i + threadIdx.x;
    if (!wanted || i >= task.product.m) return;
    if (task.splits > 1)
      static_cast<Acc<T>*>(task.partial_row_sums)[place.split * task.product.m + i] = sum;
    else
      finish_row_sum<T>(task.product, i, sum);
  }
};

}  // namespace fastnn::cuda
