// The dot form of the matrix product: C = A B with the rows of A and the columns of B both contiguous along K
// (the forward of a linear layer on torch's weight, and Gram). Both operands are loaded along K, one vector
// of partial sums for each value of C; the lanes are added up at the end. Nothing is packed, so it wins where
// M or N is too small to pay for packing.
#pragma once

#include "gemm/blocking.h"
#include "gemm/operand.h"

namespace fastnn::FASTNN_ISA {

// Tile of C: kDotRows x kDotColumns vectors of partial sums, which cover FMA latency times issue width (4 x
// 2) and leave registers for kDotColumns vectors of B and one of A; for 16-lane vectors the 16 sums of 4 x 4
// also fill exactly one tree.
constexpr int kDotRows = 4;
#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int kDotColumns = 4;
#else
constexpr int kDotColumns = 2;
#endif

// Depth of one pass over K: the kDotRows rows of A (16 KB in float) stay in L1 while the columns of B pass
// by.
constexpr int64_t kDotDepth = 1024;

// (depth, a, a_row, b, b_row, tile, tile_stride, accumulate):
//   tile[i * tile_stride + j] (+)= sum over p < depth of a[i * a_row + p] * b[j * b_row + p].
template <class A>
using DotKernel = void (*)(int64_t, const A*, int64_t, const A*, int64_t, A*, int64_t, bool);

// The kernel for a tile of rows x columns: 1 <= rows <= kDotRows, 1 <= columns <= kDotColumns. For float and
// double.
template <class A>
DotKernel<A> dot_kernel_for(int rows, int columns);

// Rows [row, row_end) and columns [column, column_end) of C on one thread; `scratch` holds
// kDotRows * (column_end - column + kLanes) values. epilogue as in gemm.h. In a lower triangle, columns
// beyond the row tile's last row are skipped.
template <class A, class Epilogue>
void dot_rectangle(int64_t row, int64_t row_end, int64_t column, int64_t column_end, int64_t k, const A* a,
                   int64_t a_row, const A* b, int64_t b_row, bool lower_triangle, const Epilogue& epilogue,
                   A* scratch) {
  constexpr int64_t kL = kLanes<A>;
  const EvenParts passes(k, ceil_div(k, kDotDepth));
  const EvenParts tiles(row_end - row, ceil_div(row_end - row, kDotRows));
  const int64_t stride = column_end - column + kL;  // room for the last vector that the epilogue is handed
  for (int64_t t = 0; t < tiles.count; ++t) {
    const int64_t i = row + tiles.begin(t), height = row + tiles.begin(t + 1) - i;
    const int64_t end = lower_triangle ? min(column_end, i + height) : column_end;
    for (int64_t pass = 0; pass < passes.count; ++pass) {
      const int64_t p = passes.begin(pass), depth = passes.begin(pass + 1) - p;
      for (int64_t j = column; j < end; j += kDotColumns) {
        const int64_t width = min(kDotColumns, end - j);
        dot_kernel_for<A>(static_cast<int>(height), static_cast<int>(width))(
            depth, a + i * a_row + p, a_row, b + j * b_row + p, b_row, scratch + j - column, stride,
            pass > 0);
      }
    }
    for (int64_t r = 0; r < height; ++r)
      for (int64_t j = column; j < end; j += kL)
        epilogue(i + r, j, load(scratch + r * stride + j - column), static_cast<int>(min(kL, end - j)));
  }
}

}  // namespace fastnn::FASTNN_ISA
