// The product of bfloat16 matrices on pairs (pair_microkernel.h), packed and blocked as in tile_gemm.h. In
// pairs along K it is that problem over again: 32-bit elements, and a step of the kernel that takes the time
// of a float step. So depths and sizes in elements are those of the float form, and K is twice as deep.
#pragma once

#include "core/scratch.h"
#include "gemm/pair_microkernel.h"
#include "gemm/pair_pack.h"
#include "gemm/threads.h"

namespace fastnn::FASTNN_ISA {

// Pairs along K of one pass.
constexpr int64_t kPairMaxDepth = 512;

// Bytes of the block of A that is swept by one panel of B: with the panel (kPairMaxDepth pairs x
// kTileColumns, up to 96 KB) it fills half of an L2 of 1 MB.
constexpr int64_t kPairBlockBytes = int64_t{384} << 10;

// Rows and columns of C that are worked on at a time. They bound the packed copies to rows x kPairMaxDepth
// and columns x kPairMaxDepth pairs (4 and 3 MB), and the sums that wait between passes to rows x columns (12
// MB).
constexpr int64_t kPairRows = 2048;
constexpr int64_t kPairColumns = 1536;

class PairGemm {
  static constexpr int64_t kL = kLanes<float>;
  using Matrix = Operand<bfloat16>;

 public:
  // epilogue and region as in gemm.h; the epilogue always receives its values, its address is never used.
  PairGemm(PairMicrokernels kernels, int64_t m, int64_t n, int64_t k, const Matrix& a, const Matrix& b,
           Region region, const Epilogue<bfloat16>& epilogue)
      : kernels_(kernels),
        n_(n),
        k_(k),
        a_(a),
        b_(b),
        region_(region),
        epilogue_(epilogue),
        tiles_(m, ceil_div(m, kTileRows)),
        panels_(ceil_div(n, kL), ceil_div(n, kTileColumns<float>)),
        passes_(ceil_div(k, 2), k > 0 ? ceil_div(ceil_div(k, 2), kPairMaxDepth) : 1) {}

  void run() {
    const EvenParts rows(tiles_.count, ceil_div(tiles_.count, kPairRows / kTileRows));
    const EvenParts columns(panels_.count, ceil_div(panels_.count, kPairColumns / kTileColumns<float>));
    for (int64_t c = 0; c < columns.count; ++c)
      for (int64_t r = 0; r < rows.count; ++r)
        Block(*this, rows.begin(r), rows.begin(r + 1), columns.begin(c), columns.begin(c + 1)).run();
  }

 private:
  // The row tiles [top, bottom) of the panels [left, right).
  class Block {
   public:
    Block(const PairGemm& gemm, int64_t top, int64_t bottom, int64_t left, int64_t right)
        : g_(gemm),
          top_(top),
          bottom_(bottom),
          left_(left),
          right_(right),
          first_row_(g_.tiles_.begin(top)),
          rows_(g_.tiles_.begin(bottom) - first_row_),
          first_column_(g_.panels_.begin(left) * kL),
          columns_(g_.panels_.begin(right) * kL - first_column_) {}

    void run() {
      const int64_t longest = g_.passes_.begin(1);
      grid_ = thread_grid(worthwhile_threads(rows_ * columns_ * longest), bottom_ - top_, right_ - left_,
                          g_.region_);
      tiles_at_once_ = kPairBlockBytes / (longest * kTileRows * static_cast<int64_t>(sizeof(uint32_t)) + 1);
      if (tiles_at_once_ < 1) tiles_at_once_ = 1;
      if (g_.passes_.count > 1)
        sums_ = static_cast<float*>(shared_scratch(Scratch::accumulate, rows_ * columns_ * sizeof(float)));
      for (pass_ = 0; pass_ < g_.passes_.count; ++pass_) {
        k_ = 2 * g_.passes_.begin(pass_);
        depth_ = min(2 * g_.passes_.begin(pass_ + 1), g_.k_) - k_;
        pairs_ = ceil_div(depth_, 2);
        pack_a();
        pack_b();
        for_each_rectangle(grid_, bottom_ - top_, right_ - left_,
                           [&](int64_t first, int64_t last, int64_t first_panel, int64_t last_panel) {
                             rectangle(top_ + first, top_ + last, left_ + first_panel, left_ + last_panel);
                           });
      }
    }

   private:
    // If A's rows are contiguous, its pairs can be read in place, except for the last value of an odd K, and
    // unless the rows map to the same cache sets (a stride that is a multiple of 2 KB).
    void pack_a() {
      const bool aliased = g_.a_.row_stride * static_cast<int64_t>(sizeof(bfloat16)) % 2048 == 0;
      packed_a_ = nullptr;
      if (g_.a_.column_stride == 1 && depth_ % 2 == 0 && !aliased) return;
      uint32_t* packed =
          static_cast<uint32_t*>(shared_scratch(Scratch::pack_a, rows_ * pairs_ * sizeof(uint32_t)));
      const Matrix from = g_.a_.at(0, k_);
      parallel_for(bottom_ - top_, ceil_div(kPackGrain, depth_ * kTileRows + 1),
                   [&](int64_t begin, int64_t end) {
                     pack_pair_tiles(from, g_.tiles_, top_ + begin, top_ + end, depth_,
                                     packed + (g_.tiles_.begin(top_ + begin) - first_row_) * pairs_);
                   });
      packed_a_ = packed;
    }

    // All panels are packed beforehand if several threads or several blocks of A read them; otherwise each is
    // packed just before its only sweep, and is still in L2 then.
    void pack_b() {
      if (grid_.rows == 1 && bottom_ - top_ <= tiles_at_once_) return;
      uint32_t* packed =
          static_cast<uint32_t*>(shared_scratch(Scratch::pack_b, columns_ * pairs_ * sizeof(uint32_t)));
      parallel_for(right_ - left_, ceil_div(kPackGrain, depth_ * kTileColumns<float> + 1),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t panel = left_ + begin; panel < left_ + end; ++panel)
                       pack_panel(panel, packed + (g_.panels_.begin(panel) * kL - first_column_) * pairs_);
                   });
      packed_b_ = packed;
    }

    void pack_panel(int64_t panel, uint32_t* to) const {
      const int64_t column = g_.panels_.begin(panel) * kL, padded = g_.panels_.begin(panel + 1) * kL - column;
      pack_pairs(g_.b_.at(k_, column).transposed(), min(padded, g_.n_ - column), depth_, to, padded);
    }

    // Row tiles [first, last) of the panels [first_panel, last_panel), on one thread.
    void rectangle(int64_t first, int64_t last, int64_t first_panel, int64_t last_panel) const {
      for (int64_t begin = first; begin < last; begin += tiles_at_once_) {
        const int64_t end = min(begin + tiles_at_once_, last);
        for (int64_t panel = first_panel; panel < last_panel; ++panel) {
          const int64_t column = g_.panels_.begin(panel) * kL;
          const int64_t padded = g_.panels_.begin(panel + 1) * kL - column;
          if (g_.region_ == Region::lower_triangle && column >= g_.tiles_.begin(end)) break;
          const uint32_t* b = packed_b_ + (column - first_column_) * pairs_;
          if (!packed_b_) {
            uint32_t* packed =
                static_cast<uint32_t*>(thread_scratch(Scratch::pack_b, padded * pairs_ * sizeof(uint32_t)));
            pack_panel(panel, packed);
            b = packed;
          }
          sweep(begin, end, column, padded, b);
        }
      }
    }

    // One panel over the row tiles [begin, end).
    void sweep(int64_t begin, int64_t end, int64_t column, int64_t padded, const uint32_t* b) const {
      alignas(64) float one_tile[kTileRows * kTileColumns<float>];
      for (int64_t t = begin; t < end; ++t) {
        const int64_t i = g_.tiles_.begin(t), height = g_.tiles_.begin(t + 1) - i;
        if (g_.region_ == Region::lower_triangle && column >= i + height) continue;
        const PairMicrokernel kernel = g_.kernels_(static_cast<int>(height), static_cast<int>(padded / kL));
        float* const tile =
            sums_ ? sums_ + (i - first_row_) * columns_ + height * (column - first_column_) : one_tile;
        if (packed_a_)
          kernel(pairs_, reinterpret_cast<const bfloat16*>(packed_a_ + (i - first_row_) * pairs_), 2,
                 2 * height, b, padded, tile, padded, pass_ > 0);
        else
          kernel(pairs_, g_.a_.at(i, k_).data, g_.a_.row_stride, 2, b, padded, tile, padded, pass_ > 0);
        if (pass_ == g_.passes_.count - 1)
          g_.epilogue_(i, column, height, min(padded, g_.n_ - column), tile, padded);
      }
    }

    const PairGemm& g_;
    const int64_t top_, bottom_, left_, right_;  // tiles, panels
    const int64_t first_row_, rows_;
    const int64_t first_column_, columns_;  // of whole vectors
    ThreadGrid grid_;
    int64_t tiles_at_once_ = 1;
    int64_t pass_ = 0, k_ = 0, depth_ = 0, pairs_ = 0;
    const uint32_t* packed_a_ = nullptr;
    const uint32_t* packed_b_ = nullptr;
    float* sums_ = nullptr;  // with several passes: the tiles, each height x padded, by rows of tiles
  };

  const PairMicrokernels kernels_;
  const int64_t n_, k_;
  const Matrix a_, b_;
  const Region region_;
  const Epilogue<bfloat16> epilogue_;
  const EvenParts tiles_;   // rows of C, of at most kTileRows
  const EvenParts panels_;  // columns of C in vectors, of at most kTileVectors
  const EvenParts passes_;  // pairs along K, of at most kPairMaxDepth
};

}  // namespace fastnn::FASTNN_ISA
