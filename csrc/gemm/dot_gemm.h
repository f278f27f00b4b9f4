// The dot form of the matrix product: C = A B with the rows of A and the columns of B both contiguous along K
// (the forward of a linear layer on torch's weight, and Gram). Nothing is packed, so it wins where M or N is
// too small to pay for packing.
#pragma once

#include "core/scratch.h"
#include "gemm/dot.h"
#include "gemm/operand.h"
#include "gemm/threads.h"

namespace fastnn::FASTNN_ISA {

// The largest smaller side of C for which the dot form is chosen: above, it is bound by L2.
constexpr int64_t kDotLargestSide = 47;

// Bytes of B's columns that stay in L2 while the rows of A stream past.
constexpr int64_t kDotBlockBytes = int64_t{512} << 10;

// Row tiles whose sums wait between passes along K: they bound the memory for it to 600 KB.
constexpr int64_t kDotWaitingTiles = 256;

// The packed form computes whole vectors along the smaller side; the dot form adds up the lanes of its sums
// at the end, and waits for the larger operand where that does not stay in L2. Their fractions of the peak,
// fitted to sides of 8 to 47 and depths of 128 to 1024 (Cascade Lake): where these are close, the forms are
// about equally fast.
template <class T>
bool dot_form_pays(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b, Region region) {
  constexpr int64_t kL = kLanes<Acc<T>>, kSize = sizeof(T);
  const int64_t side = min(m, n), padded = ceil_div(side, kL) * kL;
  if (a.column_stride != 1 || b.row_stride != 1) return false;
  if (k < 8 * kL || side > kDotLargestSide) return false;
  if (region == Region::lower_triangle) return true;
  const bool stays = (m + n - side) * k * kSize <= kDotBlockBytes;
  const double packed = (padded > kL ? 0.82 : 0.62) * static_cast<double>(side) / static_cast<double>(padded);
  const double dot = (stays ? 0.88 : 0.68) * static_cast<double>(k) / static_cast<double>(k + 8 * kL);
  return dot > packed;
}

// Rows [row, row_end) and columns [column, column_end) of C, on one thread.
template <class A>
void dot_rectangle(int64_t row, int64_t row_end, int64_t column, int64_t column_end, int64_t k, const A* a,
                   int64_t a_row, const A* b, int64_t b_row, Region region, const Epilogue<A>& epilogue) {
  constexpr int64_t kL = kLanes<A>;
  if (row == row_end || column == column_end) return;
  const EvenParts passes(k, ceil_div(k, kDotDepth));
  const EvenParts tiles(row_end - row, ceil_div(row_end - row, kDotRows));
  const int64_t stride = column_end - column + kL;  // whole vectors can be read of every row
  // With one pass a row of tiles goes to the epilogue as soon as it is done; with several all sums wait, so
  // that each pass over B's columns finds them in L2.
  const bool one_pass = passes.count == 1;
  const int64_t rows_kept = one_pass ? kDotRows : row_end - row;
  A* sums = static_cast<A*>(thread_scratch(Scratch::accumulate, rows_kept * stride * sizeof(A)));
  for (int64_t pass = 0; pass < passes.count; ++pass) {
    const int64_t p = passes.begin(pass), depth = passes.begin(pass + 1) - p;
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t i = row + tiles.begin(t), height = row + tiles.begin(t + 1) - i;
      const int64_t end = region == Region::lower_triangle ? min(column_end, i + height) : column_end;
      A* tile = one_pass ? sums : sums + (i - row) * stride;
      for (int64_t j = column; j < end; j += kDotColumns) {
        const int64_t width = min(kDotColumns, end - j);
        dot_kernel_for<A>(static_cast<int>(height), static_cast<int>(width))(
            depth, a + i * a_row + p, a_row, b + j * b_row + p, b_row, tile + j - column, stride, pass > 0);
      }
      if (pass == passes.count - 1) epilogue(i, column, height, end - column, tile, stride);
    }
  }
}

// epilogue and region as in gemm.h.
template <class T>
void dot_gemm(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b,
              const Epilogue<T>& epilogue, Region region) {
  using A = Acc<T>;
  constexpr int64_t kL = kLanes<A>;
  const int64_t row_tiles = ceil_div(m, kDotRows), column_tiles = ceil_div(n, kL);
  const int64_t most_rows = k > kDotDepth ? kDotWaitingTiles : row_tiles;
  const int64_t most_columns = kDotBlockBytes / (min(k, kDotDepth) * kL * static_cast<int64_t>(sizeof(A)));
  const int64_t threads = worthwhile_threads(m * n * k);
  ThreadGrid grid = thread_grid(threads, row_tiles, column_tiles, region);
  // Nothing is packed, so rows can be cut as well as columns, and the longer side has more whole tiles.
  if (region == Region::full && m > n) {
    const ThreadGrid turned = thread_grid(threads, column_tiles, row_tiles, region);
    grid = {turned.columns, turned.rows};
  }
  for_each_rectangle(
      grid, row_tiles, column_tiles, [&](int64_t top, int64_t bottom, int64_t left, int64_t right) {
        const EvenParts rows(bottom - top, ceil_div(bottom - top, most_rows));
        const EvenParts columns(right - left, ceil_div(right - left, most_columns));
        for (int64_t r = 0; r < rows.count; ++r)
          for (int64_t c = 0; c < columns.count; ++c)
            dot_rectangle((top + rows.begin(r)) * kDotRows, min((top + rows.begin(r + 1)) * kDotRows, m),
                          (left + columns.begin(c)) * kL, min((left + columns.begin(c + 1)) * kL, n), k,
                          reinterpret_cast<const A*>(a.data), a.row_stride,
                          reinterpret_cast<const A*>(b.data), b.column_stride, region, epilogue);
      });
}

}  // namespace fastnn::FASTNN_ISA
