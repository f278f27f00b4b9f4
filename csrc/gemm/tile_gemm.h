// The packed form of the matrix product, blocked as in BLIS (Van Zee and van de Geijn, "BLIS: A Framework for
// Rapidly Instantiating BLAS Functionality", 2015) with the operands' parts exchanged: a block of B stays in
// L2 while the row tiles of A stream past, each multiplied by all panels of the block.
#pragma once

#include "core/cpu_features.h"
#include "core/scratch.h"
#include "gemm/microkernel.h"
#include "gemm/pack.h"
#include "gemm/threads.h"

namespace fastnn::FASTNN_ISA {

// Bytes of the block of B by which every row tile of A is multiplied. It takes its share of an L2 of 1 MB and
// is packed once. A large product is bound by L3, at 3 to 8 bytes a cycle on a shared machine: A then streams
// past in long rows, which the hardware prefetcher hides behind the sums, and usually need not be packed. The
// other way round (a block of A in L2, panels of B packed again for each) the packing of B, which nothing
// hides, took up to a fifth of the time.
constexpr int64_t kBlockBytes = int64_t{640} << 10;

// Bytes of B, including the gaps between its rows, up to which all row tiles read it in place: each row of a
// panel costs each of them a first-level TLB miss. Rows a multiple of a page apart map to the same set of L1,
// so that prefetched lines evict each other. Measured against packing: 28x784x64 (200 KB) 10%
// faster, 256x256x256 (256 KB) 8%, 512x784x128 (400 KB) level, 512x1024x32 (rows of 4 KB, 128 KB) 6% slower.
constexpr int64_t kInPlaceBytes = int64_t{256} << 10;
constexpr int64_t kInPlaceAliasedBytes = int64_t{64} << 10;
constexpr int64_t kPage = 4096;

// With few row tiles, packing (0.2 to 0.5 cycles a value) costs more than those misses if a panel's row has
// several lines: then B is read in place up to these parts of L2. One thread of an Emerald Rapids (L2 2 MB),
// AVX-512, packed -> in place: 32, 64, 128x784x512 (1.5 MB) 17, 9, 5% faster, 64x512x512 8%, 128x784x128 1%,
// 64x784x1000 (3 MB) 8%, 64x3000x512 (6 MB) 3% slower; rows of 2 or 4 KB: 64x1024x256 (1 MB) 6% faster,
// 64x1024x512 (2 MB) 6% slower; 256x300x300, 256x1024x256 1 and 2% slower.
constexpr int64_t kFewRowTiles = 16;
constexpr int64_t kCacheLine = 64;

// Rows and columns of C that are worked on at a time. They bound the packed copy of A to rows x kMaxDepth
// (4 MB) and the sums that wait between passes to rows x columns (6 MB).
constexpr int64_t kMaxRows = 1024;
constexpr int64_t kMaxColumns = 1536;

template <class T>
class TileGemm {
  using A = Acc<T>;
  static constexpr int64_t kL = kLanes<A>;

 public:
  // epilogue and region as in gemm.h. few_columns: for chain_length, of the requested product, of which this
  // may be the transpose.
  TileGemm(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b, Region region,
           const Epilogue<T>& epilogue, bool few_columns)
      : n_(n),
        few_columns_(few_columns),
        a_(a),
        b_(b),
        region_(region),
        epilogue_(epilogue),
        work_(m * n * k),
        tiles_(m, ceil_div(m, kTileRows)),
        panels_(ceil_div(n, kL), ceil_div(n, kTileColumns<A>)),
        passes_(k, k > 0 ? ceil_div(k, kMaxDepth) : 1) {}

  void run() const {
    const ThreadGrid grid = thread_grid(worthwhile_threads(work_), tiles_.count, panels_.count, region_);
    for_each_rectangle(grid, tiles_.count, panels_.count,
                       [&](int64_t top, int64_t bottom, int64_t left, int64_t right) {
                         const EvenParts rows(bottom - top, ceil_div(bottom - top, kMaxRows / kTileRows));
                         const EvenParts columns(right - left, ceil_div(right - left, kMostPanels));
                         for (int64_t r = 0; r < rows.count; ++r)
                           for (int64_t c = 0; c < columns.count; ++c)
                             Block(*this, top + rows.begin(r), top + rows.begin(r + 1),
                                   left + columns.begin(c), left + columns.begin(c + 1))
                                 .run();
                       });
  }

 private:
  static constexpr int64_t kSize = sizeof(A);
  static constexpr int64_t kMostPanels = kMaxColumns / kTileColumns<A>;

  // Columns of B where the micro-kernel reads them.
  struct Panel {
    const A* values;
    int64_t row_stride;
    A* packed;               // where its first row tile should store a packed copy, or null
    int64_t column, padded;  // the first of them, and how many: whole vectors
  };

  // The row tiles [top, bottom) of the panels [left, right), on one thread.
  class Block {
   public:
    Block(const TileGemm& gemm, int64_t top, int64_t bottom, int64_t left, int64_t right)
        : g_(gemm),
          top_(top),
          bottom_(bottom),
          left_(left),
          right_(right),
          first_row_(g_.tiles_.begin(top)),
          rows_(g_.tiles_.begin(bottom) - first_row_),
          first_vector_(g_.panels_.begin(left)),
          vectors_(g_.panels_.begin(right) - first_vector_) {}

    void run() {
      if (g_.passes_.count > 1)
        sums_ = static_cast<A*>(thread_scratch(Scratch::accumulate, rows_ * vectors_ * kL * kSize));
      for (pass_ = 0; pass_ < g_.passes_.count; ++pass_) {
        k_ = g_.passes_.begin(pass_);
        depth_ = g_.passes_.begin(pass_ + 1) - k_;
        chain_ = chain_length(depth_, g_.few_columns_);
        place_a();
        const int64_t fitting = kBlockBytes / (depth_ * kTileColumns<A> * kSize + 1);
        const int64_t count = needed_panels();
        if (count == 0) return;
        const EvenParts blocks(count, ceil_div(count, fitting > 1 ? fitting : 1));
        for (int64_t i = 0; i < blocks.count; ++i)
          sweep(left_ + blocks.begin(i), left_ + blocks.begin(i + 1));
      }
    }

   private:
    // Those of [left, right) that are not entirely above the diagonal, if only the triangle is wanted.
    int64_t needed_panels() const {
      int64_t count = right_ - left_;
      if (g_.region_ == Region::lower_triangle)
        while (count > 0 && g_.panels_.begin(left_ + count - 1) * kL >= first_row_ + rows_) --count;
      return count;
    }

    // Packs A, or uses it in place: the micro-kernel reads any strides, but of rows that are not contiguous
    // it uses only a part of each cache line, and if they are a multiple of 2 KB apart the lines map to the
    // same sets of L1.
    void place_a() {
      const Operand<T> a = g_.a_.at(first_row_, k_);
      if (sizeof(T) == sizeof(A) &&
          (a.column_stride <= 1 || (right_ - left_ <= 2 && a.column_stride * kSize % 2048 != 0))) {
        a_ = reinterpret_cast<const A*>(a.data);
        tile_step_ = a_row_ = a.row_stride;
        a_column_ = a.column_stride;
        by_columns_ = false;
        return;
      }
      const TileLayout<T> layout(a, depth_);
      A* const packed = static_cast<A*>(thread_scratch(Scratch::pack_a, rows_ * layout.row_length * kSize));
      pack_tiles(a, layout, g_.tiles_, top_, bottom_, depth_, packed);
      a_ = packed;
      tile_step_ = layout.row_length;
      a_row_ = layout.row_stride();
      a_column_ = 1;
      by_columns_ = !layout.by_rows;
    }

    // Whether a panel of B need not be packed: few row tiles read it, or all of B is close together.
    bool b_in_place() const {
      const int64_t row = g_.b_.row_stride * kSize, bytes = depth_ * row, tiles = bottom_ - top_;
      if (tiles <= 2 || bytes <= (row % kPage ? kInPlaceBytes : kInPlaceAliasedBytes)) return true;
      if (tiles > kFewRowTiles || kTileColumns<A> * kSize < 2 * kCacheLine) return false;
      return bytes <= (row % (kPage / 2) ? l2_bytes() * 3 / 2 : l2_bytes() / 2);
    }

    // Packs the panels [left, right) of B, or uses them in place. A panel with contiguous rows is packed by
    // the kernel of its first row tile, at the cost of the stores alone.
    void place_b(int64_t left, int64_t right, Panel* panels) const {
      const int64_t first = g_.panels_.begin(left), vectors = g_.panels_.begin(right) - first;
      for (int64_t p = left; p < right; ++p, ++panels) {
        const int64_t column = g_.panels_.begin(p) * kL, padded = g_.panels_.begin(p + 1) * kL - column;
        const Operand<T> from = g_.b_.at(k_, column);
        const bool readable = sizeof(T) == sizeof(A) && from.column_stride == 1 && column + padded <= g_.n_;
        if (readable)
          *panels = {reinterpret_cast<const A*>(from.data), from.row_stride, nullptr, column, padded};
        if (readable && b_in_place()) continue;
        A* const block = static_cast<A*>(thread_scratch(Scratch::pack_b, depth_ * vectors * kL * kSize));
        A* const packed = block + depth_ * (column - first * kL);
        if (readable) {
          panels->packed = packed;
        } else {
          pack_panel(from.transposed(), min(padded, g_.n_ - column), depth_, packed, padded);
          *panels = {packed, padded, nullptr, column, padded};
        }
      }
    }

    // All row tiles times the panels [left, right).
    void sweep(int64_t left, int64_t right) const {
      Panel panels[kMostPanels];
      place_b(left, right, panels);
      for (int64_t t = top_; t < bottom_; ++t) {
        const int64_t i = g_.tiles_.begin(t), height = g_.tiles_.begin(t + 1) - i;
        for (Panel* panel = panels; panel < panels + (right - left); ++panel) {
          if (g_.region_ == Region::lower_triangle && panel->column >= i + height) break;
          multiply(i, height, *panel);
          if (panel->packed) *panel = {panel->packed, panel->padded, nullptr, panel->column, panel->padded};
        }
      }
    }

    // The row tile that begins at row i times a panel.
    void multiply(int64_t i, int64_t height, const Panel& panel) const {
      const int64_t column = panel.column, padded = panel.padded;
      alignas(64) A one_tile[kTileRows * kTileColumns<A>];
      A* const c = g_.epilogue_.direct;
      A* const direct = c && column + padded <= g_.n_ ? c + i * g_.n_ + column : nullptr;
      A* const tile = direct ? direct
                      : sums_
                          ? sums_ + (i - first_row_) * vectors_ * kL + height * (column - first_vector_ * kL)
                          : one_tile;
      const auto kernel =
          microkernel_for<A>(static_cast<int>(height), static_cast<int>(padded / kL), panel.packed);
      const A* const a = a_ + (i - first_row_) * tile_step_;
      const int64_t a_column = by_columns_ ? height : a_column_, stride = direct ? g_.n_ : padded;
      const Found found = pass_ > 0 ? Found::waiting : Found::nothing;
      if (chain_ == depth_)
        kernel(depth_, a, a_row_, a_column, panel.values, panel.row_stride, panel.packed, tile, stride,
               found);
      else
        multiply_in_chains(kernel, a, a_column, panel, tile, stride, found);
      if (!direct && pass_ == g_.passes_.count - 1)
        g_.epilogue_(i, column, height, min(padded, g_.n_ - column), tile, padded);
    }

    // Not inlined, so that it does not slow down the short tiles of a single chain.
    __attribute__((noinline)) void multiply_in_chains(Microkernel<A> kernel, const A* a, int64_t a_column,
                                                      const Panel& panel, A* tile, int64_t stride,
                                                      Found found) const {
      const A* b = panel.values;
      A* packed = panel.packed;
      for (int64_t p = 0; p < depth_; p += chain_) {
        kernel(min(chain_, depth_ - p), a, a_row_, a_column, b, panel.row_stride, packed, tile, stride,
               found);
        found = Found::fresh;
        a += chain_ * a_column;
        b += chain_ * panel.row_stride;
        if (packed) packed += chain_ * panel.padded;
      }
    }

    const TileGemm& g_;
    const int64_t top_, bottom_, left_, right_;  // tiles, panels
    const int64_t first_row_, rows_;
    const int64_t first_vector_, vectors_;
    int64_t pass_ = 0, k_ = 0, depth_ = 0, chain_ = 0;
    const A* a_ = nullptr;
    int64_t tile_step_ = 0;  // values of A from one row to the next, within a tile
    int64_t a_row_ = 0;
    int64_t a_column_ = 0;
    bool by_columns_ = false;  // a tile is packed by columns, its height apart
    A* sums_ = nullptr;        // with several passes: the tiles, each height x padded, by rows of tiles
  };

  const int64_t n_;
  const bool few_columns_;
  const Operand<T> a_, b_;
  const Region region_;
  const Epilogue<T> epilogue_;
  const int64_t work_;
  const EvenParts tiles_;   // rows of C, of at most kTileRows
  const EvenParts panels_;  // columns of C in vectors, of at most kTileVectors
  const EvenParts passes_;  // K, of at most kMaxDepth
};

}  // namespace fastnn::FASTNN_ISA
