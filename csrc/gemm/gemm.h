// Matrix product on the CPU: C (M, N) = A (M, K) B (K, N), any strides, four storage types, an epilogue that
// sees each value of C once, in registers.
//
// Columns are cut into panels of up to kTileColumns, rows into tiles of up to kTileRows, K into passes of up
// to kMaxDepth. A thread takes a rectangle of tiles. For each panel and pass it packs the panel of B just in
// time (or reads it in place where that is cheaper) and sweeps it over its rows. A is read in place where its
// rows can be streamed, else it is packed first, by all threads together.
//
// Every value of C is the sum of its passes in order, each pass a chain of FMAs in the order of K. So it
// depends neither on the number of threads nor on what was packed.
#pragma once

#include "core/parallel.h"
#include "gemm/microkernel.h"
#include "gemm/pack.h"

namespace fastnn::FASTNN_ISA {

enum class Region { full, lower_triangle };

// Multiply-adds below which a second thread costs more than it saves (measured: a region costs about a
// microsecond).
constexpr int64_t kGemmGrain = 1 << 17;

// Rows of A packed at a time: a bound on the memory that packing takes.
constexpr int64_t kMaxPackedBytes = int64_t{8} << 20;

// How threads share the tiles: `rows` x `columns` rectangles.
struct ThreadGrid {
  int64_t rows = 1;
  int64_t columns = 1;
};

// The grid whose largest rectangle is smallest; among equals the one with most columns, since each row of
// rectangles packs the same panels of B again.
inline ThreadGrid thread_grid(int64_t threads, int64_t row_tiles, int64_t panels) {
  ThreadGrid best;
  int64_t least = row_tiles * panels;
  for (int64_t columns = threads; columns >= 1; --columns) {
    const int64_t rows = threads / columns;
    const int64_t largest = ceil_div(row_tiles, rows) * ceil_div(panels, columns);
    if (largest < least) {
      least = largest;
      best = {rows, columns};
    }
  }
  return best;
}

template <class T, class Epilogue>
class Gemm {
  using A = Acc<T>;
  static constexpr int64_t kL = kLanes<A>;

 public:
  // epilogue(i, j, v, n): the n <= kLanes values of row i from column j on. In Region::lower_triangle only
  // tiles that touch it are computed, and the epilogue sees some values above the diagonal too.
  Gemm(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b, Region region,
       const Epilogue& epilogue)
      : m_(m), n_(n), k_(k), a_(a), b_(b), region_(region), epilogue_(epilogue) {
    row_tiles_ = ceil_div(m, kTileRows);
    vectors_ = ceil_div(n, kL);
    panels_ = ceil_div(vectors_, kTileVectors);
    passes_ = k > 0 ? ceil_div(k, kMaxDepth) : 1;
  }

  void run() {
    if (m_ == 0 || n_ == 0) return;
    if (!pack_a()) return compute(0, row_tiles_, nullptr);
    const int64_t tiles_at_once = block_tiles();
    for (int64_t first = 0; first < row_tiles_; first += tiles_at_once) {
      const int64_t last = first + tiles_at_once < row_tiles_ ? first + tiles_at_once : row_tiles_;
      const int64_t rows = tile_begin(last) - tile_begin(first);
      A* packed = static_cast<A*>(thread_scratch(Scratch::pack_a, rows * k_ * sizeof(A)));
      parallel_for(last - first, ceil_div(kGemmGrain, k_ * kTileRows + 1), [&](int64_t begin, int64_t end) {
        for (int64_t t = first + begin; t < first + end; ++t) {
          const int64_t i = tile_begin(t), height = tile_begin(t + 1) - i;
          pack_panel(a_.at(i, 0), height, k_, packed + (i - tile_begin(first)) * k_, height);
        }
      });
      compute(first, last, packed);
    }
  }

 private:
  int64_t tile_begin(int64_t tile) const { return part_begin(m_, row_tiles_, tile); }
  int64_t panel_begin(int64_t panel) const { return part_begin(vectors_, panels_, panel) * kL; }
  int64_t pass_begin(int64_t pass) const { return part_begin(k_, passes_, pass); }

  int64_t block_tiles() const {
    const int64_t tiles = kMaxPackedBytes / (k_ * kTileRows * static_cast<int64_t>(sizeof(A)) + 1);
    return tiles < 1 ? 1 : tiles;
  }

  // In place the micro-kernel needs values of the computing type and a layout whose rows do not fall on the
  // same cache sets (a stride that is a multiple of 2 KB leaves the kTileRows streams two sets or fewer in
  // L1).
  bool pack_a() const {
    if (sizeof(T) != sizeof(A) || a_.mask) return true;
    const bool aliased = a_.column_stride == 1 && a_.row_stride * static_cast<int64_t>(sizeof(T)) % 2048 == 0;
    return panels_ > 2 && (aliased || a_.column_stride > 1);
  }

  // A panel of B whose rows are contiguous can be read where it lies. Packing it pays once its rows are read
  // often and do not stay in L1 by themselves.
  bool b_in_place(int64_t width, int64_t row_tiles) const {
    return sizeof(T) == sizeof(A) && !b_.mask && b_.column_stride == 1 && width % kL == 0 &&
           (row_tiles <= 8 || k_ <= 128);
  }

  void compute(int64_t first_tile, int64_t last_tile, const A* packed_a) {
    const int64_t work = (tile_begin(last_tile) - tile_begin(first_tile)) * n_ * (k_ + 1);
    const int64_t wanted = work / kGemmGrain, available = max_threads();
    const int64_t threads = wanted < 1 ? 1 : wanted < available ? wanted : available;
    const ThreadGrid grid = thread_grid(threads, last_tile - first_tile, panels_);
    parallel_for(grid.rows * grid.columns, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t row = r / grid.columns, column = r % grid.columns;
        rectangle(first_tile, first_tile + part_begin(last_tile - first_tile, grid.rows, row),
                  first_tile + part_begin(last_tile - first_tile, grid.rows, row + 1),
                  part_begin(panels_, grid.columns, column), part_begin(panels_, grid.columns, column + 1),
                  packed_a);
      }
    });
  }

  // Tiles [first, last) of the panels [first_panel, last_panel). packed_a starts at tile block_first.
  void rectangle(int64_t block_first, int64_t first, int64_t last, int64_t first_panel, int64_t last_panel,
                 const A* packed_a) {
    if (first == last) return;
    const int64_t first_row = tile_begin(first);
    // With one pass a tile goes to the epilogue as soon as it is done; with several the sums of the whole
    // panel wait.
    const int64_t rows_kept = passes_ == 1 ? kTileRows : tile_begin(last) - first_row;
    A* sums = static_cast<A*>(thread_scratch(Scratch::accumulate, rows_kept * kTileColumns<A> * sizeof(A)));
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      const int64_t column = panel_begin(panel);
      const int64_t end = panel_begin(panel + 1) < n_ ? panel_begin(panel + 1) : n_;
      const int64_t width = end - column, padded = ceil_div(width, kL) * kL;
      if (region_ == Region::lower_triangle && column >= tile_begin(last)) break;
      for (int64_t pass = 0; pass < passes_; ++pass) {
        const int64_t p = pass_begin(pass), depth = pass_begin(pass + 1) - p;
        const A* b;
        int64_t b_row;
        if (b_in_place(width, last - first)) {
          b = reinterpret_cast<const A*>(b_.data + p * b_.row_stride + column);
          b_row = b_.row_stride;
        } else {
          A* packed =
              static_cast<A*>(thread_scratch(Scratch::pack_b, kMaxDepth * kTileColumns<A> * sizeof(A)));
          pack_panel(b_.at(p, column).transposed(), width, depth, packed, padded);
          b = packed;
          b_row = padded;
        }
        for (int64_t t = first; t < last; ++t) {
          const int64_t i = tile_begin(t), height = tile_begin(t + 1) - i;
          if (region_ == Region::lower_triangle && column >= i + height) continue;
          A* tile = passes_ == 1 ? sums : sums + (i - first_row) * padded;
          const auto kernel = microkernel_for<A>(static_cast<int>(height), static_cast<int>(padded / kL));
          if (packed_a)
            kernel(depth, packed_a + (i - tile_begin(block_first)) * k_ + p * height, 1, height, b, b_row,
                   tile, padded, pass > 0);
          else
            kernel(depth, reinterpret_cast<const A*>(a_.data + i * a_.row_stride + p * a_.column_stride),
                   a_.row_stride, a_.column_stride, b, b_row, tile, padded, pass > 0);
          if (pass == passes_ - 1) finish(i, height, column, width, tile, padded);
        }
      }
    }
  }

  void finish(int64_t i, int64_t height, int64_t column, int64_t width, const A* tile, int64_t stride) const {
    for (int64_t r = 0; r < height; ++r)
      for (int64_t j = 0; j < width; j += kL)
        epilogue_(i + r, column + j, load(tile + r * stride + j),
                  width - j < kL ? static_cast<int>(width - j) : static_cast<int>(kL));
  }

  const int64_t m_, n_, k_;
  const Operand<T> a_, b_;
  const Region region_;
  const Epilogue epilogue_;
  int64_t row_tiles_, vectors_, panels_, passes_;
};

template <class T, class Epilogue>
void gemm(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b, const Epilogue& epilogue,
          Region region = Region::full) {
  Gemm<T, Epilogue>(m, n, k, a, b, region, epilogue).run();
}

}  // namespace fastnn::FASTNN_ISA
