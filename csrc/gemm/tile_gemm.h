// The packed form of the matrix product, blocked as in BLIS (Van Zee and van de Geijn, "BLIS: A Framework for
// Rapidly Instantiating BLAS Functionality", 2015): a block of A stays in L2 while the panels of B pass by,
// each read once for every row tile of the block.
#pragma once

#include "core/scratch.h"
#include "gemm/microkernel.h"
#include "gemm/pack.h"
#include "gemm/threads.h"

namespace fastnn::FASTNN_ISA {

// Bytes of the block of A that is swept by each panel of B. With a panel, its source and the lines of C that
// pass by (100 KB each) it stays within an L2 of 1 MB. L3 is the bottleneck of a large product, at 3 to 8
// bytes a cycle on a shared machine, so each thread packs block after block and panel after panel into the
// same two buffers, which never leave its L2. A panel is packed again for each block, at 4% of the sweep's
// time.
constexpr int64_t kBlockBytes = int64_t{512} << 10;

// Columns of C that are worked on at a time. They bound the sums that wait between passes.
constexpr int64_t kMaxColumns = 1536;

template <class T, class Epilogue>
class TileGemm {
  using A = Acc<T>;
  static constexpr int64_t kL = kLanes<A>;

 public:
  // epilogue and region as in gemm.h.
  TileGemm(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b, Region region,
           const Epilogue& epilogue)
      : n_(n),
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
    for_each_rectangle(
        grid, tiles_.count, panels_.count, [&](int64_t top, int64_t bottom, int64_t left, int64_t right) {
          const int64_t longest = passes_.begin(1);
          const int64_t tiles = kBlockBytes / (longest * kTileRows * kSize + 1);
          const EvenParts rows(bottom - top, ceil_div(bottom - top, tiles > 1 ? tiles : 1));
          const EvenParts columns(right - left, ceil_div(right - left, kMaxColumns / kTileColumns<A>));
          for (int64_t c = 0; c < columns.count; ++c)
            for (int64_t r = 0; r < rows.count; ++r)
              Block(*this, top + rows.begin(r), top + rows.begin(r + 1), left + columns.begin(c),
                    left + columns.begin(c + 1))
                  .run();
        });
  }

 private:
  static constexpr int64_t kSize = sizeof(A);

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
        place_a();
        for (int64_t panel = left_; panel < right_; ++panel) {
          const int64_t column = g_.panels_.begin(panel) * kL;
          if (g_.region_ == Region::lower_triangle && column >= first_row_ + rows_) break;
          sweep(column, g_.panels_.begin(panel + 1) * kL - column);
        }
      }
    }

   private:
    // Packs the block of A, or finds it good where it lies. In place the micro-kernel needs values of the
    // computing type and a layout whose rows do not fall on the same cache sets (a stride that is a multiple
    // of 2 KB leaves the kTileRows streams two sets or fewer in L1).
    void place_a() {
      const Operand<T> a = g_.a_.at(first_row_, k_);
      const bool aliased = a.column_stride == 1 && a.row_stride * static_cast<int64_t>(sizeof(T)) % 2048 == 0;
      const bool reused = right_ - left_ > 2;
      const bool packs = sizeof(T) != sizeof(A) || (reused && (aliased || a.column_stride > 1));
      if (!packs) {
        block_a_ = reinterpret_cast<const A*>(a.data);
        tile_step_ = a_row_ = a.row_stride;
        a_column_ = a.column_stride;
        by_columns_ = false;
        return;
      }
      const TileLayout<T> layout(a, depth_);
      A* const packed = static_cast<A*>(thread_scratch(Scratch::pack_a, rows_ * layout.row_length * kSize));
      pack_tiles(a, layout, g_.tiles_, top_, bottom_, depth_, packed);
      block_a_ = packed;
      tile_step_ = layout.row_length;
      a_row_ = layout.row_stride();
      a_column_ = 1;
      by_columns_ = !layout.by_rows;
    }

    // A panel of B whose rows are contiguous can be read where it lies. Packing it pays once its rows are
    // read often and do not stay in L1 by themselves.
    bool b_in_place(int64_t column, int64_t padded) const {
      return sizeof(T) == sizeof(A) && g_.b_.column_stride == 1 && column + padded <= g_.n_ &&
             (bottom_ - top_ <= 8 || depth_ <= 128);
    }

    // One panel over all row tiles.
    void sweep(int64_t column, int64_t padded) const {
      const int vectors = static_cast<int>(padded / kL);
      const bool whole = column + padded <= g_.n_, last_pass = pass_ == g_.passes_.count - 1;
      const Operand<T> from = g_.b_.at(k_, column);
      const A* b = reinterpret_cast<const A*>(from.data);
      int64_t b_row = from.row_stride;
      if (!b_in_place(column, padded)) {
        A* const packed = static_cast<A*>(thread_scratch(Scratch::pack_b, depth_ * padded * kSize));
        pack_panel(from.transposed(), min(padded, g_.n_ - column), depth_, packed, padded);
        b = packed;
        b_row = padded;
      }
      alignas(64) A one_tile[kTileRows * kTileColumns<A>];
      for (int64_t t = top_, i = first_row_; t < bottom_; ++t) {
        const int64_t height = g_.tiles_.begin(t + 1) - i;
        if (g_.region_ == Region::full || column < i + height) {
          A* const direct = whole ? g_.epilogue_.direct(i, column) : nullptr;
          A* const tile =
              direct  ? direct
              : sums_ ? sums_ + (i - first_row_) * vectors_ * kL + height * (column - first_vector_ * kL)
                      : one_tile;
          microkernel_for<A>(static_cast<int>(height), vectors)(
              depth_, block_a_ + (i - first_row_) * tile_step_, a_row_, by_columns_ ? height : a_column_, b,
              b_row, tile, direct ? g_.n_ : padded, pass_ > 0);
          if (!direct && last_pass) finish(i, height, column, padded, tile);
        }
        i += height;
      }
    }

    void finish(int64_t i, int64_t height, int64_t column, int64_t padded, const A* tile) const {
      const int64_t width = min(padded, g_.n_ - column);
      for (int64_t r = 0; r < height; ++r)
        for (int64_t j = 0; j < width; j += kL)
          g_.epilogue_(i + r, column + j, load(tile + r * padded + j), static_cast<int>(min(kL, width - j)));
    }

    const TileGemm& g_;
    const int64_t top_, bottom_, left_, right_;  // tiles, panels
    const int64_t first_row_, rows_;
    const int64_t first_vector_, vectors_;
    int64_t pass_ = 0, k_ = 0, depth_ = 0;
    const A* block_a_ = nullptr;
    int64_t tile_step_ = 0;  // values of A from one row to the next, as tiles are concerned
    int64_t a_row_ = 0;
    int64_t a_column_ = 0;
    bool by_columns_ = false;  // a tile is packed by columns, its height apart
    A* sums_ = nullptr;        // with several passes: the tiles, each height x padded, by rows of tiles
  };

  const int64_t n_;
  const Operand<T> a_, b_;
  const Region region_;
  const Epilogue epilogue_;
  const int64_t work_;
  const EvenParts tiles_;   // rows of C, of at most kTileRows
  const EvenParts panels_;  // columns of C in vectors, of at most kTileVectors
  const EvenParts passes_;  // K, of at most kMaxDepth
};

}  // namespace fastnn::FASTNN_ISA
