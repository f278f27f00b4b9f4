// The packed form of the matrix product, blocked as in BLIS (Van Zee and van de Geijn, "BLIS: A Framework for
// Rapidly Instantiating BLAS Functionality", 2015): a block of A stays in L2 while the panels of B pass by,
// each read once for every row tile of the block.
#pragma once

#include "core/scratch.h"
#include "gemm/microkernel.h"
#include "gemm/pack.h"
#include "gemm/threads.h"

namespace fastnn::FASTNN_ISA {

// Bytes of the block of A that is swept by one panel of B: with the panel (up to 96 KB) it fills half of an
// L2 of 1 MB.
constexpr int64_t kBlockBytes = int64_t{384} << 10;

// Rows and columns of C that are worked on at a time. They bound the packed copies to rows x kMaxDepth and
// columns x kMaxDepth values, and the sums that wait between passes to rows x columns.
constexpr int64_t kMaxRows = 2048;
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
        tiles_(m, ceil_div(m, kTileRows)),
        panels_(ceil_div(n, kL), ceil_div(n, kTileColumns<A>)),
        passes_(k, k > 0 ? ceil_div(k, kMaxDepth) : 1) {}

  void run() {
    const EvenParts rows(tiles_.count, ceil_div(tiles_.count, kMaxRows / kTileRows));
    const EvenParts columns(panels_.count, ceil_div(panels_.count, kMaxColumns / kTileColumns<A>));
    for (int64_t c = 0; c < columns.count; ++c)
      for (int64_t r = 0; r < rows.count; ++r)
        Block(*this, rows.begin(r), rows.begin(r + 1), columns.begin(c), columns.begin(c + 1)).run();
  }

 private:
  // The row tiles [top, bottom) of the panels [left, right).
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
      const bool several = g_.passes_.count > 1;
      const int64_t longest = g_.passes_.begin(1);
      const int64_t work = rows_ * vectors_ * kL * longest;
      grid_ = thread_grid(worthwhile_threads(work), bottom_ - top_, right_ - left_, g_.region_);
      tiles_at_once_ = kBlockBytes / (longest * kTileRows * static_cast<int64_t>(sizeof(A)) + 1);
      if (tiles_at_once_ < 1) tiles_at_once_ = 1;
      if (several)
        sums_ = static_cast<A*>(shared_scratch(Scratch::accumulate, rows_ * vectors_ * kL * sizeof(A)));
      for (pass_ = 0; pass_ < g_.passes_.count; ++pass_) {
        k_ = g_.passes_.begin(pass_);
        depth_ = g_.passes_.begin(pass_ + 1) - k_;
        pack_a();
        pack_b();
        for_each_rectangle(grid_, bottom_ - top_, right_ - left_,
                           [&](int64_t first, int64_t last, int64_t first_panel, int64_t last_panel) {
                             rectangle(top_ + first, top_ + last, left_ + first_panel, left_ + last_panel);
                           });
      }
    }

   private:
    // In place the micro-kernel needs values of the computing type and a layout whose rows do not fall on the
    // same cache sets (a stride that is a multiple of 2 KB leaves the kTileRows streams two sets or fewer in
    // L1).
    void pack_a() {
      const Operand<T>& a = g_.a_;
      const bool aliased = a.column_stride == 1 && a.row_stride * static_cast<int64_t>(sizeof(T)) % 2048 == 0;
      const bool reused = right_ - left_ > 2;
      if (sizeof(T) == sizeof(A) && !(reused && (aliased || a.column_stride > 1))) return;
      A* packed = static_cast<A*>(shared_scratch(Scratch::pack_a, rows_ * depth_ * sizeof(A)));
      const Operand<T> from = a.at(0, k_);
      parallel_for(bottom_ - top_, ceil_div(kPackGrain, depth_ * kTileRows + 1),
                   [&](int64_t begin, int64_t end) {
                     pack_tiles(from, g_.tiles_, top_ + begin, top_ + end, depth_,
                                packed + (g_.tiles_.begin(top_ + begin) - first_row_) * depth_);
                   });
      packed_a_ = packed;
    }

    // All panels are packed beforehand where several threads or several blocks of A read them; else each is
    // packed just before its only sweep, and is still in L2 then.
    void pack_b() {
      if (grid_.rows == 1 && bottom_ - top_ <= tiles_at_once_) return;
      A* packed = static_cast<A*>(shared_scratch(Scratch::pack_b, vectors_ * kL * depth_ * sizeof(A)));
      parallel_for(right_ - left_, ceil_div(kPackGrain, depth_ * kTileColumns<A> + 1),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t panel = left_ + begin; panel < left_ + end; ++panel)
                       pack_panel_b(panel, packed + (g_.panels_.begin(panel) - first_vector_) * kL * depth_);
                   });
      packed_b_ = packed;
    }

    void pack_panel_b(int64_t panel, A* to) const {
      const int64_t column = g_.panels_.begin(panel) * kL, padded = g_.panels_.begin(panel + 1) * kL - column;
      pack_panel(g_.b_.at(k_, column).transposed(), min(padded, g_.n_ - column), depth_, to, padded);
    }

    // A panel of B whose rows are contiguous can be read where it lies. Packing it pays once its rows are
    // read often and do not stay in L1 by themselves.
    bool b_in_place(int64_t column, int64_t padded) const {
      const Operand<T>& b = g_.b_;
      return sizeof(T) == sizeof(A) && b.column_stride == 1 && column + padded <= g_.n_ &&
             (bottom_ - top_ <= 8 || depth_ <= 128);
    }

    // Row tiles [first, last) of the panels [first_panel, last_panel), on one thread.
    void rectangle(int64_t first, int64_t last, int64_t first_panel, int64_t last_panel) const {
      for (int64_t begin = first; begin < last; begin += tiles_at_once_) {
        const int64_t end = min(begin + tiles_at_once_, last);
        for (int64_t panel = first_panel; panel < last_panel; ++panel) {
          const int64_t vector = g_.panels_.begin(panel), column = vector * kL;
          const int64_t padded = g_.panels_.begin(panel + 1) * kL - column;
          if (g_.region_ == Region::lower_triangle && column >= g_.tiles_.begin(end)) break;
          const A* b;
          int64_t b_row = padded;
          if (b_in_place(column, padded)) {
            b = reinterpret_cast<const A*>(g_.b_.at(k_, column).data);
            b_row = g_.b_.row_stride;
          } else if (packed_b_) {
            b = packed_b_ + (vector - first_vector_) * kL * depth_;
          } else {
            A* packed = static_cast<A*>(thread_scratch(Scratch::pack_b, depth_ * padded * sizeof(A)));
            pack_panel_b(panel, packed);
            b = packed;
          }
          sweep(begin, end, column, padded, b, b_row);
        }
      }
    }

    // One panel over the row tiles [begin, end).
    void sweep(int64_t begin, int64_t end, int64_t column, int64_t padded, const A* b, int64_t b_row) const {
      alignas(64) A one_tile[kTileRows * kTileColumns<A>];
      const int vectors = static_cast<int>(padded / kL);
      const bool whole = column + padded <= g_.n_;
      for (int64_t t = begin, i = g_.tiles_.begin(begin); t < end; ++t) {
        const int64_t height = g_.tiles_.begin(t + 1) - i;
        if (g_.region_ == Region::full || column < i + height) {
          A* const direct = whole && !sums_ ? g_.epilogue_.direct(i, column) : nullptr;
          A* tile = direct ? direct
                    : sums_
                        ? sums_ + (i - first_row_) * vectors_ * kL + height * (column - first_vector_ * kL)
                        : one_tile;
          const int64_t tile_stride = direct ? g_.n_ : padded;
          const Microkernel<A> kernel = microkernel_for<A>(static_cast<int>(height), vectors);
          if (packed_a_) {
            kernel(depth_, packed_a_ + (i - first_row_) * depth_, 1, height, b, b_row, tile, tile_stride,
                   pass_ > 0);
          } else {
            const Operand<T> a = g_.a_.at(i, k_);
            kernel(depth_, reinterpret_cast<const A*>(a.data), a.row_stride, a.column_stride, b, b_row, tile,
                   tile_stride, pass_ > 0);
          }
          if (!direct && pass_ == g_.passes_.count - 1) finish(i, height, column, padded, tile);
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
    ThreadGrid grid_;
    int64_t tiles_at_once_ = 1;
    int64_t pass_ = 0, k_ = 0, depth_ = 0;
    const A* packed_a_ = nullptr;
    const A* packed_b_ = nullptr;
    A* sums_ = nullptr;  // with several passes: the tiles, each height x padded, by rows of tiles
  };

  const int64_t n_;
  const Operand<T> a_, b_;
  const Region region_;
  const Epilogue epilogue_;
  const EvenParts tiles_;   // rows of C, of at most kTileRows
  const EvenParts panels_;  // columns of C in vectors, of at most kTileVectors
  const EvenParts passes_;  // K, of at most kMaxDepth
};

}  // namespace fastnn::FASTNN_ISA
