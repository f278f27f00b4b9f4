// Common parts of the matrix product kernels: the place of a block, its slices of the operands in shared
// memory, and from its sums to the result.
#pragma once

#include "core/cuda/dtype.cuh"
#include "core/cuda/launch.cuh"
#include "core/cuda/pack.cuh"
#include "core/cuda/ptx_matrix.cuh"
#include "gemm/cuda/product.h"

namespace fastnn::cuda {

// A product as passed to its kernels.
struct Task {
  Product product;
  int64_t chunk;                       // of K, for each of the splits
  int splits;                          // more than 1: sums go to `partials`, and sum_splits finishes them
  void* partials;                      // (splits, batches, M, N) of the type of the sums
  void* partial_row_sums;              // (splits, M) of the same
  int row_tiles, column_tiles, tiles;  // of one batch
  bool a_packs, b_packs, y_packs;      // whether 16 bytes can be copied at a time
};

// Which values a block computes from which part of K.
struct Place {
  int64_t batch, i, j;  // the first of its values
  int64_t k, k_end;
  int split;
};

// Concurrent blocks should share operands in L2: they take tiles in bands of kBand rows. With
// one triangle only they go along its rows.
template <int kTile>
__device__ __forceinline__ Place place_of_block(const Task& task) {
  constexpr int kBand = 8;
  const Product& p = task.product;
  const int tile = static_cast<int>(blockIdx.x % task.tiles);
  const int rest = static_cast<int>(blockIdx.x / task.tiles);
  int row, column;
  if (p.symmetric) {
    row = static_cast<int>((sqrtf(8.0f * static_cast<float>(tile) + 1.0f) - 1.0f) * 0.5f);
    while (row * (row + 1) / 2 > tile) --row;
    while ((row + 1) * (row + 2) / 2 <= tile) ++row;
    column = tile - row * (row + 1) / 2;
  } else {
    const int band = tile / (kBand * task.column_tiles), within = tile % (kBand * task.column_tiles);
    const int rows = min(kBand, task.row_tiles - band * kBand);
    row = band * kBand + within % rows;
    column = within / rows;
  }
  Place place;
  place.split = rest % task.splits;
  place.batch = rest / task.splits;
  place.i = int64_t{row} * kTile;
  place.j = int64_t{column} * kTile;
  place.k = place.split * task.chunk;
  place.k_end = min(place.k + task.chunk, p.k);
  return place;
}

// Copies a slice of an operand to shared memory: kOuter lines of kInner elements, kPitch elements apart, of
// which the first `outers` lines and `inners` elements exist; the rest becomes 0. With `packs` inner_stride
// is 1 and all lines are aligned to 16 bytes. Complete after commit_copies, wait_copies and a barrier.
template <class T, int kOuter, int kInner, int kPitch, int kThreads>
__device__ __forceinline__ void load_slice(T* to, const T* from, int64_t outer_stride, int64_t inner_stride,
                                           int outers, int inners, bool packs) {
  constexpr int kPack = kPackSize<T>;
  const int thread = static_cast<int>(threadIdx.x);
  if (packs) {
    constexpr int kPacks = kInner / kPack;
    static_assert(kOuter * kPacks % kThreads == 0 && kPitch % kPack == 0);
#pragma unroll
    for (int u = 0; u < kOuter * kPacks / kThreads; ++u) {
      const int at = thread + u * kThreads, outer = at / kPacks, inner = at % kPacks * kPack;
      const int valid = outer < outers ? max(0, min(kPack, inners - inner)) : 0;
      const T* const source = valid > 0 ? from + outer * outer_stride + inner : from;
      ptx::copy_async<kPackBytes>(to + outer * kPitch + inner, source, valid * static_cast<int>(sizeof(T)));
    }
    return;
  }
  // Neighbouring lanes follow the direction with neighbouring elements.
  const bool along_outer = outer_stride == 1;
#pragma unroll 4
  for (int at = thread; at < kOuter * kInner; at += kThreads) {
    const int outer = along_outer ? at % kOuter : at / kInner;
    const int inner = along_outer ? at / kOuter : at % kInner;
    const bool valid = outer < outers && inner < inners;
    const T* const source = valid ? from + outer * outer_stride + inner * inner_stride : from;
    T* const target = to + outer * kPitch + inner;
    if constexpr (sizeof(T) >= 4)
      ptx::copy_async<sizeof(T)>(target, source, valid ? static_cast<int>(sizeof(T)) : 0);
    else
      *target = valid ? *source : T{};
  }
}

// min(left, most) of 64 bits as an int that is not negative.
__device__ __forceinline__ int extent(int64_t left, int most) {
  return left <= 0 ? 0 : left < most ? static_cast<int>(left) : most;
}

// A block's slice of an operand: kTile rows and kDepth of K. kAlongRows: lines of rows for each k, else of k
// for each row. Lines are kPad elements longer than what they hold.
template <class T, int kTile, int kDepth, bool kAlongRows, int kPad, int kThreads>
struct Slice {
  static constexpr int kInner = kAlongRows ? kTile : kDepth, kOuter = kAlongRows ? kDepth : kTile;
  static constexpr int kPitch = kInner + kPad;
  static constexpr int kSize = kOuter * kPitch;

  // Rows from i and K from k on, of which `rows` and `depth` exist.
  static __device__ __forceinline__ void load(T* to, const Matrix& matrix, int64_t batch, int64_t i,
                                              int64_t k, int rows, int depth, bool packs) {
    const T* const from =
        static_cast<const T*>(matrix.data) + batch * matrix.batch + i * matrix.row + k * matrix.column;
    if constexpr (kAlongRows)
      load_slice<T, kOuter, kInner, kPitch, kThreads>(to, from, matrix.column, matrix.row, depth, rows,
                                                      packs);
    else
      load_slice<T, kOuter, kInner, kPitch, kThreads>(to, from, matrix.row, matrix.column, rows, depth,
                                                      packs);
  }

  // The copies of one thread for slices that are whole along K, if all packs are whole: its pack of some
  // lines, in slice after slice. Rows that do not exist are left as they are, because their results are never
  // read; apart from the addresses, which advance by a stride, nothing is computed in the main loop.
  struct Whole {
    static constexpr int kPacks = kInner / kPackSize<T>;  // of a line
    static constexpr int kLines = kThreads / kPacks;      // from one of the thread's lines to the next
    static constexpr int kCopies = kOuter * kPacks / kThreads;
    static_assert(kThreads % kPacks == 0 && kOuter % kLines == 0);
    const T* from;
    int64_t next_line, next_slice;
    ptx::SharedAddress to;  // in the first slice that the memory holds
    int count;              // lines that exist

    __device__ __forceinline__ Whole(const T* memory, const Matrix& matrix, int64_t batch, int64_t i,
                                     int64_t k, int rows) {
      const int line = static_cast<int>(threadIdx.x) / kPacks;
      const int inner = static_cast<int>(threadIdx.x) % kPacks * kPackSize<T>;
      const int64_t along = kAlongRows ? matrix.column : matrix.row;  // from line to line
      from = static_cast<const T*>(matrix.data) + batch * matrix.batch + i * matrix.row + k * matrix.column +
             line * along + inner;
      next_line = kLines * along;
      next_slice = kDepth * matrix.column;
      to = ptx::keep(ptx::shared_address(memory + line * kPitch + inner));
      count = ptx::keep(kAlongRows ? (inner < rows ? kCopies : 0) : (rows - line + kLines - 1) / kLines);
    }
    static __device__ __forceinline__ bool can_copy(int rows, bool packs) {
      return packs && (!kAlongRows || rows % kPackSize<T> == 0);
    }
    // Copies to the slice `slice` bytes after the first one.
    __device__ __forceinline__ void copy(int slice) {
      constexpr int kNextLine = kLines * kPitch * static_cast<int>(sizeof(T));
#pragma unroll
      for (int u = 0; u < kCopies; ++u)
        if (u < count)
          ptx::copy_async<kPackBytes>(to + slice + u * kNextLine, from + u * next_line, kPackBytes);
      from += next_slice;
    }
  };

  static __device__ __forceinline__ T at(const T* slice, int row, int k) {
    return slice[kAlongRows ? k * kPitch + row : row * kPitch + k];
  }
};

template <class T>
__device__ __forceinline__ T* slice_at(T* memory, int bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<char*>(memory) + bytes);
}

// Runs `step(at)` on one pair of slices after the other, while the next kStages - 1 are being copied: `at` is
// the offset in bytes of the pair in the memory, which holds kStages of them, that of A before that of B.
// After the return the memory can be reused.
template <class T, class A, class B, int kTile, int kDepth, int kStages, class Step>
__device__ __forceinline__ void for_each_slice(const Task& task, const Place& place, T* memory,
                                               const Step& step) {
  constexpr int kBytes = (A::kSize + B::kSize) * static_cast<int>(sizeof(T));
  const Product& p = task.product;
  const int rows = extent(p.m - place.i, kTile), columns = extent(p.n - place.j, kTile);
  const int64_t length = place.k_end - place.k;
  const int steps = length > 0 ? static_cast<int>((length + kDepth - 1) / kDepth) : 0;
  typename A::Whole a(memory, p.a, place.batch, place.i, place.k, rows);
  typename B::Whole b(memory + A::kSize, p.b, place.batch, place.j, place.k, columns);
  const bool whole = A::Whole::can_copy(rows, task.a_packs) && B::Whole::can_copy(columns, task.b_packs);
  const int whole_steps = whole && length > 0 ? static_cast<int>(length / kDepth) : 0;
  const auto after = [](int at) { return at == (kStages - 1) * kBytes ? 0 : at + kBytes; };
  int filled = 0;  // where the next slices go
  const auto load = [&](int s) {
    if (s < whole_steps) {
      a.copy(filled);
      b.copy(filled);
    } else if (s < steps) {
      T* const to = slice_at(memory, filled);
      const int64_t k = place.k + int64_t{s} * kDepth;
      const int depth = extent(place.k_end - k, kDepth);
      A::load(to, p.a, place.batch, place.i, k, rows, depth, task.a_packs);
      B::load(to + A::kSize, p.b, place.batch, place.j, k, columns, depth, task.b_packs);
    }
    filled = after(filled);
    ptx::commit_copies();  // an empty group at the end, so that their count stays the same
  };
#pragma unroll 1
  for (int s = 0; s < kStages - 1; ++s) load(s);
  int used = 0;
#pragma unroll 1
  for (int s = 0; s < steps; ++s) {
    ptx::wait_copies<kStages - 2>();
    __syncthreads();  // slice s is visible to all, and s - 1 is no longer read
    load(s + kStages - 1);
    const int at = used;
    used = after(used);
    step(at);
  }
  ptx::wait_copies<0>();
  __syncthreads();
}

}  // namespace fastnn::cuda
