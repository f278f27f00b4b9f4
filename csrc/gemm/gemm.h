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
#include "gemm/dot.h"
#include "gemm/microkernel.h"
#include "gemm/pack.h"

namespace fastnn::FASTNN_ISA {

enum class Region { full, lower_triangle };

// Multiply-adds below which a second thread costs more than it saves (measured: a region costs about a
// microsecond).
constexpr int64_t kGemmGrain = 1 << 17;

// Rows of A packed at a time: a bound on the memory that packing takes.
constexpr int64_t kMaxPackedBytes = int64_t{8} << 20;

// The largest smaller side of C for which the dot form is chosen.
constexpr int64_t kDotLargestSide = 128;

inline int64_t worthwhile_threads(int64_t multiply_adds) {
  const int64_t wanted = multiply_adds / kGemmGrain;
  return wanted < 2 ? 1 : min(wanted, max_threads());
}

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
      : n_(n),
        k_(k),
        a_(a),
        b_(b),
        region_(region),
        epilogue_(epilogue),
        tiles_(m, ceil_div(m, kTileRows)),
        panels_(ceil_div(n, kL), ceil_div(n, kTileColumns<A>)),
        passes_(k, k > 0 ? ceil_div(k, kMaxDepth) : 1) {}

  void run() {
    if (!packs_a()) return compute(0, tiles_.count, nullptr);
    const int64_t fit = kMaxPackedBytes / (k_ * kTileRows * static_cast<int64_t>(sizeof(A)) + 1);
    const int64_t at_once = fit < 1 ? 1 : fit;
    for (int64_t first = 0; first < tiles_.count; first += at_once) {
      const int64_t last = min(first + at_once, tiles_.count);
      const int64_t origin = tiles_.begin(first), rows = tiles_.begin(last) - origin;
      A* packed = static_cast<A*>(thread_scratch(Scratch::pack_a, rows * k_ * sizeof(A)));
      parallel_for(last - first, ceil_div(kGemmGrain, k_ * kTileRows + 1), [&](int64_t begin, int64_t end) {
        pack_tiles(a_, tiles_, first + begin, first + end, k_,
                   packed + (tiles_.begin(first + begin) - origin) * k_);
      });
      compute(first, last, packed);
    }
  }

 private:
  // In place the micro-kernel needs values of the computing type and a layout whose rows do not fall on the
  // same cache sets (a stride that is a multiple of 2 KB leaves the kTileRows streams two sets or fewer in
  // L1).
  bool packs_a() const {
    if (sizeof(T) != sizeof(A) || a_.mask) return true;
    const bool aliased = a_.column_stride == 1 && a_.row_stride * static_cast<int64_t>(sizeof(T)) % 2048 == 0;
    return panels_.count > 2 && (aliased || a_.column_stride > 1);
  }

  // A panel of B whose rows are contiguous can be read where it lies. Packing it pays once its rows are read
  // often and do not stay in L1 by themselves.
  bool b_in_place(int64_t width, int64_t row_tiles) const {
    return sizeof(T) == sizeof(A) && !b_.mask && b_.column_stride == 1 && width % kL == 0 &&
           (row_tiles <= 8 || k_ <= 128);
  }

  // The row tiles [first, last) of C; packed_a, if any, begins at tile `first`.
  void compute(int64_t first, int64_t last, const A* packed_a) {
    const int64_t work = (tiles_.begin(last) - tiles_.begin(first)) * n_ * (k_ + 1);
    const ThreadGrid grid = thread_grid(worthwhile_threads(work), last - first, panels_.count);
    const EvenParts rows(last - first, grid.rows), columns(panels_.count, grid.columns);
    parallel_for(grid.rows * grid.columns, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t row = r / grid.columns, column = r % grid.columns;
        const int64_t top = first + rows.begin(row), bottom = first + rows.begin(row + 1);
        const A* a = packed_a ? packed_a + (tiles_.begin(top) - tiles_.begin(first)) * k_ : nullptr;
        rectangle(top, bottom, columns.begin(column), columns.begin(column + 1), a);
      }
    });
  }

  // Row tiles [first, last) of the panels [first_panel, last_panel), on one thread.
  void rectangle(int64_t first, int64_t last, int64_t first_panel, int64_t last_panel, const A* packed_a) {
    const int64_t top = tiles_.begin(first), bottom = tiles_.begin(last);
    // With one pass a tile goes to the epilogue as soon as it is done; with several the sums of the whole
    // panel wait.
    const bool one_pass = passes_.count == 1;
    const int64_t rows_kept = one_pass ? kTileRows : bottom - top;
    A* sums = static_cast<A*>(thread_scratch(Scratch::accumulate, rows_kept * kTileColumns<A> * sizeof(A)));
    A* packed_b =
        static_cast<A*>(thread_scratch(Scratch::pack_b, min(k_, kMaxDepth) * kTileColumns<A> * sizeof(A)));
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      const int64_t column = panels_.begin(panel) * kL;
      const int64_t width = min(panels_.begin(panel + 1) * kL, n_) - column,
                    padded = ceil_div(width, kL) * kL;
      const int vectors = static_cast<int>(padded / kL);
      const bool in_place = b_in_place(width, last - first);
      for (int64_t pass = 0; pass < passes_.count; ++pass) {
        const int64_t p = passes_.begin(pass), depth = passes_.begin(pass + 1) - p;
        const A* b = packed_b;
        int64_t b_row = padded;
        if (in_place) {
          b = reinterpret_cast<const A*>(b_.data + p * b_.row_stride + column);
          b_row = b_.row_stride;
        } else {
          pack_panel(b_.at(p, column).transposed(), width, depth, packed_b, padded);
        }
        for (int64_t t = first, i = top; t < last; ++t) {
          const int64_t height = tiles_.begin(t + 1) - i;
          if (region_ == Region::full || column < i + height) {
            A* tile = one_pass ? sums : sums + (i - top) * padded;
            const Microkernel<A> kernel = microkernel_for<A>(static_cast<int>(height), vectors);
            if (packed_a)
              kernel(depth, packed_a + (i - top) * k_ + p * height, 1, height, b, b_row, tile, padded,
                     pass > 0);
            else
              kernel(depth, reinterpret_cast<const A*>(a_.data + i * a_.row_stride + p * a_.column_stride),
                     a_.row_stride, a_.column_stride, b, b_row, tile, padded, pass > 0);
            if (pass == passes_.count - 1) finish(i, height, column, width, tile, padded);
          }
          i += height;
        }
      }
    }
  }

  void finish(int64_t i, int64_t height, int64_t column, int64_t width, const A* tile, int64_t stride) const {
    for (int64_t r = 0; r < height; ++r)
      for (int64_t j = 0; j < width; j += kL)
        epilogue_(i + r, column + j, load(tile + r * stride + j), static_cast<int>(min(kL, width - j)));
  }

  const int64_t n_, k_;
  const Operand<T> a_, b_;
  const Region region_;
  const Epilogue epilogue_;
  const EvenParts tiles_;   // rows of C, of at most kTileRows
  const EvenParts panels_;  // columns of C in vectors, of at most kTileVectors
  const EvenParts passes_;  // K, of at most kMaxDepth
};

// Whether the dot form is faster: both operands contiguous along K and long enough to pay for adding up the
// lanes, and one side of C so small that packing for the register tile does not pay.
template <class T>
bool dot_form(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b) {
  if (sizeof(T) != sizeof(Acc<T>) || a.mask || b.mask || a.column_stride != 1 || b.row_stride != 1)
    return false;
  return k >= 8 * kLanes<Acc<T>> && min(m, n) <= kDotLargestSide;
}

template <class T, class Epilogue>
void dot_gemm(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b,
              const Epilogue& epilogue, Region region) {
  using A = Acc<T>;
  const int64_t row_tiles = ceil_div(m, kDotRows), column_tiles = ceil_div(n, kLanes<A>);
  const ThreadGrid grid = thread_grid(worthwhile_threads(m * n * k), row_tiles, column_tiles);
  const EvenParts rows(row_tiles, grid.rows), columns(column_tiles, grid.columns);
  parallel_for(grid.rows * grid.columns, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t row = r / grid.columns, column = r % grid.columns;
      const int64_t top = rows.begin(row) * kDotRows, bottom = min(rows.begin(row + 1) * kDotRows, m);
      const int64_t left = columns.begin(column) * kLanes<A>,
                    right = min(columns.begin(column + 1) * kLanes<A>, n);
      A* scratch = static_cast<A*>(
          thread_scratch(Scratch::accumulate, kDotRows * (right - left + kLanes<A>)*sizeof(A)));
      dot_rectangle(top, bottom, left, right, k, reinterpret_cast<const A*>(a.data), a.row_stride,
                    reinterpret_cast<const A*>(b.data), b.column_stride, region == Region::lower_triangle,
                    epilogue, scratch);
    }
  });
}

template <class T, class Epilogue>
void gemm(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b, const Epilogue& epilogue,
          Region region = Region::full) {
  if (m == 0 || n == 0) return;
  if (dot_form(m, n, k, a, b))
    dot_gemm(m, n, k, a, b, epilogue, region);
  else
    Gemm<T, Epilogue>(m, n, k, a, b, region, epilogue).run();
}

}  // namespace fastnn::FASTNN_ISA
