// How the threads share a matrix product.
#pragma once

#include "core/parallel.h"
#include "gemm/blocking.h"
#include "gemm/gemm.h"

namespace fastnn::FASTNN_ISA {

// Multiply-adds below which a second thread costs more than it saves (measured: a region costs about a
// microsecond).
constexpr int64_t kGemmGrain = 1 << 17;

inline int64_t worthwhile_threads(int64_t multiply_adds) {
  const int64_t wanted = multiply_adds / kGemmGrain;
  return wanted < 2 ? 1 : min(wanted, max_threads());
}

// Values below which packing is not worth a second thread, as for any elementwise pass.
constexpr int64_t kPackGrain = 32768;

// How threads share the tiles: `rows` x `columns` rectangles.
struct ThreadGrid {
  int64_t rows = 1;
  int64_t columns = 1;
};

// The grid whose largest rectangle is smallest; among equals the one with most columns, since each row of
// rectangles reads all of B. No rectangle is empty. A triangle is split into two bands of rows per thread,
// each of which gets a short and a long one.
inline ThreadGrid thread_grid(int64_t threads, int64_t row_tiles, int64_t panels, Region region) {
  if (region == Region::lower_triangle) return {threads > 1 ? min(2 * threads, row_tiles) : 1, 1};
  ThreadGrid best;
  int64_t least = row_tiles * panels;
  for (int64_t columns = min(threads, panels); columns >= 1; --columns) {
    const int64_t rows = min(threads / columns, row_tiles);
    const int64_t largest = ceil_div(row_tiles, rows) * ceil_div(panels, columns);
    if (largest < least) {
      least = largest;
      best = {rows, columns};
    }
  }
  return best;
}

// Calls body(first_row, last_row, first_column, last_column) for each rectangle, in parallel. The rectangles
// are assigned from both ends in turn, which pairs the bands of a triangle.
template <class Body>
inline void for_each_rectangle(const ThreadGrid& grid, int64_t row_tiles, int64_t panels, const Body& body) {
  const EvenParts rows(row_tiles, grid.rows), columns(panels, grid.columns);
  const int64_t count = grid.rows * grid.columns;
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t turn = begin; turn < end; ++turn) {
      const int64_t r = turn % 2 == 0 ? turn / 2 : count - 1 - turn / 2;
      const int64_t row = r / grid.columns, column = r % grid.columns;
      body(rows.begin(row), rows.begin(row + 1), columns.begin(column), columns.begin(column + 1));
    }
  });
}

}  // namespace fastnn::FASTNN_ISA
