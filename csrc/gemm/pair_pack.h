// Packing for the pair kernel: copies a block of a bfloat16 operand into pairs, in the order in which the
// kernel reads them.
#pragma once

#include "core/transpose.h"
#include "gemm/blocking.h"
#include "gemm/operand.h"

namespace fastnn::FASTNN_ISA {

// dst[p * ld + i] = the pair source(i, 2p), source(i, 2p + 1) for i < width, 2p < depth; what is outside
// width or depth is 0. The packed form of `width` rows of A (ld = width), or, given B transposed, of `width`
// columns of B (ld a multiple of the vector).
inline void pack_pairs(const Operand<bfloat16>& source, int64_t width, int64_t depth, uint32_t* dst,
                       int64_t ld) {
  constexpr int64_t kL = kLanes<float>;
  const int64_t pairs = ceil_div(depth, 2);
  if (source.column_stride == 1) {
    // Pairs are already in memory: 32-bit values to transpose.
    for (int64_t i = 0; i < ld; i += kL)
      for (int64_t p = 0; p < pairs; p += kL) {
        const int values = static_cast<int>(min(2 * kL, depth - 2 * p));
        const int lanes = static_cast<int>(min(kL, ld - i));
        Pairs square[kL];
#pragma GCC unroll 16
        for (int r = 0; r < kL; ++r)
          square[r] = i + r < width ? load_pairs(source.at(i + r, 2 * p).data, values) : Pairs{};
        transpose<uint32_t>(square);
#pragma GCC unroll 16
        for (int c = 0; c < kL; ++c)
          if (p + c < pairs) store_pairs(dst + (p + c) * ld + i, square[c], lanes);
      }
    return;
  }
  if (source.row_stride == 1) {
    for (int64_t p = 0; p < pairs; ++p) {
      const bfloat16* const first = source.at(0, 2 * p).data;
      const bfloat16* const second = 2 * p + 1 < depth ? first + source.column_stride : nullptr;
      uint32_t* const to = dst + p * ld;
      int64_t i = 0;
      for (; i + kL <= width; i += kL)
        store_pairs(to + i, join_pairs(first + i, second ? second + i : nullptr, kL), kL);
      for (; i < ld; i += kL) {
        const int n = static_cast<int>(width > i ? width - i : 0);
        store_pairs(to + i, join_pairs(first + i, second ? second + i : nullptr, n),
                    static_cast<int>(min(kL, ld - i)));
      }
    }
    return;
  }
  for (int64_t p = 0; p < pairs; ++p)
    for (int64_t i = 0; i < ld; ++i) {
      const auto bits = [&](int64_t j) -> uint32_t {
        return i < width && j < depth ? source.at(i, j).data->bits : 0;
      };
      dst[p * ld + i] = bits(2 * p) | bits(2 * p + 1) << 16;
    }
}

// Packs the row tiles [first, last) of A, each into height * ceil(K / 2) pairs, one after another. Where A is
// stored by columns this walks a few columns of all tiles before the next: a tile alone would use a piece of
// each cache line.
inline void pack_pair_tiles(const Operand<bfloat16>& a, const EvenParts& tiles, int64_t first, int64_t last,
                            int64_t k, uint32_t* dst) {
  constexpr int64_t kColumns = 16;  // even: a pair must not be cut
  const int64_t pairs = ceil_div(k, 2), step = a.row_stride == 1 ? kColumns : k;
  const int64_t origin = tiles.begin(first);
  for (int64_t p = 0; p < k; p += step)
    for (int64_t t = first; t < last; ++t) {
      const int64_t i = tiles.begin(t), height = tiles.begin(t + 1) - i;
      pack_pairs(a.at(i, p), height, min(step, k - p), dst + (i - origin) * pairs + p / 2 * height, height);
    }
}

}  // namespace fastnn::FASTNN_ISA
