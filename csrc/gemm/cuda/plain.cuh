// Matrix products by fused multiply-adds: float32 and float64, any strides.
#pragma once

#include "gemm/cuda/epilogue.cuh"

namespace fastnn::cuda {

// A block of kThreads threads computes kTile x kTile values, each thread kRows x kColumns of them, in steps
// of kDepth of K. 8 x 8 values take 16 loads from shared memory, 4 of 128 bits, to 64 multiply-adds: their 16
// cycles of a scheduler (of 2 lanes a cycle each) hide 4 loads of 4 cycles. Smaller tiles read more for each
// value, and leave more blocks for the device.
template <class T, int kTile_>
struct PlainShape;
template <>
struct PlainShape<float, 128> {
  static constexpr int kThreads = 256, kRows = 8, kColumns = 8, kDepth = 16, kBlocks = 2;
};
template <class T>
struct PlainShape<T, 64> {
  static constexpr int kThreads = 256, kRows = 4, kColumns = 4, kDepth = 16, kBlocks = 2;
};
template <class T>
struct PlainShape<T, 32> {
  static constexpr int kThreads = 128, kRows = 4, kColumns = 2, kDepth = 32, kBlocks = 4;
};

template <class T, int kTile>
struct PlainMemory {
  using Shape = PlainShape<T, kTile>;
  static constexpr int kStages = 3;
  // Lines are padded by 16 bytes: elements that neighbouring lanes copy go to different banks.
  using Operand = Slice<T, kTile, Shape::kDepth, true, kPackSize<T>, Shape::kThreads>;
  static constexpr int kOperands = kStages * 2 * Operand::kSize * static_cast<int>(sizeof(T));
  static constexpr int kBytes = kOperands > Sums<T, kTile>::kBytes ? kOperands : Sums<T, kTile>::kBytes;
};

// kCount neighbouring values at an address that is aligned to all of them.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Neighbours {
  T at[kCount];
};

// One side of a thread's values: kValues of a tile's kTile, in pieces of up to 16 bytes, the pieces of the
// kPositions threads side by side.
template <class T, int kValues, int kPositions>
struct Side {
  static constexpr int kPiece = kValues < kPackSize<T> ? kValues : kPackSize<T>;
  static constexpr int kPieces = kValues / kPiece;

  static __device__ __forceinline__ int offset(int piece, int position) {
    return (piece * kPositions + position) * kPiece;
  }
  static __device__ __forceinline__ void read(const T* line, int position, T (&v)[kValues]) {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const auto loaded = *reinterpret_cast<const Neighbours<T, kPiece>*>(line + offset(piece, position));
#pragma unroll
      for (int e = 0; e < kPiece; ++e) v[piece * kPiece + e] = loaded.at[e];
    }
  }
};

template <class T, int kTile>
__global__ void __launch_bounds__(PlainShape<T, kTile>::kThreads, PlainShape<T, kTile>::kBlocks)
    plain_product(const __grid_constant__ Task task) {
  using Shape = PlainShape<T, kTile>;
  using Memory = PlainMemory<T, kTile>;
  using Operand = typename Memory::Operand;
  constexpr int kRows = Shape::kRows, kColumns = Shape::kColumns;
  constexpr int kAcross = kTile / kColumns, kDown = kTile / kRows;
  static_assert(kAcross * kDown == Shape::kThreads);
  using RowSide = Side<T, kRows, kDown>;
  using ColumnSide = Side<T, kColumns, kAcross>;
  T* const memory = ptx::dynamic_shared<T>();
  const Place place = place_of_block<kTile>(task);

  // A warp is 4 threads down and 8 across: it reads 4 and 8 different pieces, the fewest there are.
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  constexpr int kWarpsAcross = kAcross / 8;
  const int down = warp / kWarpsAcross * 4 + lane / 8, across = warp % kWarpsAcross * 8 + lane % 8;

  T sums[kRows][kColumns] = {};
  RowSum<T, Operand, kTile, Shape::kDepth> row_sum(task, place);
  for_each_slice<T, Operand, Operand, kTile, Shape::kDepth, Memory::kStages>(
      task, place, memory, [&](int at) {
        const T* const a_slice = slice_at(memory, at);
        const T* const b_slice = a_slice + Operand::kSize;
#pragma unroll
        for (int k = 0; k < Shape::kDepth; ++k) {
          T a[kRows], b[kColumns];
          RowSide::read(a_slice + k * Operand::kPitch, down, a);
          ColumnSide::read(b_slice + k * Operand::kPitch, across, b);
#pragma unroll
          for (int r = 0; r < kRows; ++r)
#pragma unroll
            for (int c = 0; c < kColumns; ++c) sums[r][c] += a[r] * b[c];
        }
        row_sum.add(a_slice);
      });

#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int row = RowSide::offset(r / RowSide::kPiece, down) + r % RowSide::kPiece;
#pragma unroll
    for (int piece = 0; piece < ColumnSide::kPieces; ++piece) {
      Neighbours<T, ColumnSide::kPiece> values;
#pragma unroll
      for (int e = 0; e < ColumnSide::kPiece; ++e) values.at[e] = sums[r][piece * ColumnSide::kPiece + e];
      T* const to = memory + row * Sums<T, kTile>::kPitch + ColumnSide::offset(piece, across);
      *reinterpret_cast<Neighbours<T, ColumnSide::kPiece>*>(to) = values;
    }
  }
  __syncthreads();
  store_tile<T, kTile, Shape::kThreads>(task, place, memory);
  row_sum.store(task, place);
}

}  // namespace fastnn::cuda
