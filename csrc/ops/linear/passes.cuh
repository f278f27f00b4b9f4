// The passes of a linear layer besides its products.
#pragma once

#include "gemm/cuda/epilogue.cuh"

namespace fastnn::cuda {

constexpr int kPassThreads = 256;
constexpr int kPassWarps = kPassThreads / kWarp;

// The epilogue of a product that another library has stored in out.y (m, n).
template <class T, int kCount>
__global__ void __launch_bounds__(kPassThreads) finish_product(Epilogue out, int64_t m, int64_t n) {
  const int64_t at = (int64_t{blockIdx.x} * kPassThreads + threadIdx.x) * kCount;
  if (at >= m * n) return;
  Acc<T> v[kCount];
  load_values<kCount>(static_cast<const T*>(out.y) + at, v);
  finish_values<T, kCount>(out, m, n, 0, at / n, at % n, v);
}

struct GradientPass {
  int64_t m, n;
  Matrix dy, saved;  // (M, N)
  Activation activation;
  void* g;       // (M, N) contiguous, or null
  void* db;      // (N), or null
  void* sums;    // (row_blocks, N) of the type of sums, unless a block has all rows
  int64_t rows;  // of a block
  int column_blocks, row_blocks;
};

// The sums of the columns of a block: thread t gives kCount values for columns t % 32 * kCount + (0 ...), and
// `store(column, sum)` is called once for each of the block's 32 kCount columns.
template <int kCount, class S, class Store>
__device__ __forceinline__ void sum_warps(const S (&v)[kCount], const Store& store) {
  __shared__ S shared[kPassWarps][kWarp * kCount];
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int e = 0; e < kCount; ++e) shared[warp][lane * kCount + e] = v[e];
  __syncthreads();
  for (int column = static_cast<int>(threadIdx.x); column < kWarp * kCount; column += kPassThreads) {
    S total = shared[0][column];
#pragma unroll
    for (int w = 1; w < kPassWarps; ++w) total += shared[w][column];
    store(column, total);
  }
}

// One pass over dY: lanes along columns, kCount each, warps along the rows of the block.
template <class T, int kCount>
__global__ void __launch_bounds__(kPassThreads) gradient_pass(const __grid_constant__ GradientPass pass) {
  using S = Acc<T>;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first_column = int64_t{blockIdx.x % pass.column_blocks} * (kWarp * kCount);
  const int64_t row_block = blockIdx.x / pass.column_blocks, j = first_column + lane * kCount;
  const int64_t end = min((row_block + 1) * pass.rows, pass.m);
  S sums[kCount] = {};
  if (j < pass.n) {
    const T* const dy = static_cast<const T*>(pass.dy.data) + j * pass.dy.column;
    const T* const saved = static_cast<const T*>(pass.saved.data) + j * pass.saved.column;
    T* const g = static_cast<T*>(pass.g) + j;
#pragma unroll 4
    for (int64_t i = row_block * pass.rows + warp; i < end; i += kPassWarps) {
      S v[kCount];
      load_values<kCount>(dy + i * pass.dy.row, v);
      if (pass.activation != Activation::none) {
        S at[kCount];
        load_values<kCount>(saved + i * pass.saved.row, at);
#pragma unroll
        for (int e = 0; e < kCount; ++e) v[e] = gradient_before(pass.activation, v[e], at[e]);
      }
      if (pass.g) store_values<kCount>(g + i * pass.n, v);
#pragma unroll
      for (int e = 0; e < kCount; ++e) sums[e] += v[e];
    }
  }
  if (!pass.db) return;
  sum_warps(sums, [&](int column, S total) {
    const int64_t at = first_column + column;
    if (at >= pass.n) return;
    if (pass.row_blocks > 1)
      static_cast<S*>(pass.sums)[row_block * pass.n + at] = total;
    else
      static_cast<T*>(pass.db)[at] = from_acc<T>(total);
  });
}

// Adds up the sums that the blocks of gradient_pass have stored for each column.
template <class T>
__global__ void __launch_bounds__(kPassThreads) sum_row_blocks(const __grid_constant__ GradientPass pass) {
  using S = Acc<T>;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first = int64_t{blockIdx.x} * kWarp, j = first + lane;
  S sums[1] = {};
  if (j < pass.n)
#pragma unroll 4
    for (int64_t i = warp; i < pass.row_blocks; i += kPassWarps)
      sums[0] += static_cast<const S*>(pass.sums)[i * pass.n + j];
  sum_warps(sums, [&](int column, S total) {
    if (first + column < pass.n) static_cast<T*>(pass.db)[first + column] = from_acc<T>(total);
  });
}

}  // namespace fastnn::cuda
