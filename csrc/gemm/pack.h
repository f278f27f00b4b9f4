// Packing: copies a block of an operand into the order in which the micro-kernel reads it, converting 16-bit
// values to float on the way.
#pragma once

#include "gemm/blocking.h"
#include "gemm/operand.h"
#include "gemm/transpose.h"

namespace fastnn::FASTNN_ISA {

// dst[j * ld + i] = source(i, j) for i < width, j < depth; rows width..ld of each column are set to 0.
// The packed form of `width` rows of A (ld = width), or, given B transposed, of `width` columns of B (ld a
// multiple of the vector).
template <class T>
void pack_panel(const Operand<T>& source, int64_t width, int64_t depth, Acc<T>* dst, int64_t ld) {
  using A = Acc<T>;
  constexpr int kL = kLanes<A>;
  if (source.row_stride == 1) {
    const Operand<T> lines = source.transposed();
    for (int64_t j = 0; j < depth; ++j)
      for (int64_t i = 0; i < ld; i += kL) {
        const int n = width - i < kL ? (width > i ? static_cast<int>(width - i) : 0) : kL;
        const Vec<A> v = lines.values(j, i, n);
        if (ld - i >= kL)
          store(dst + j * ld + i, v);
        else
          store_partial(dst + j * ld + i, v, static_cast<int>(ld - i));
      }
    return;
  }
  int64_t squares_end = 0;
  if (source.column_stride == 1) {
    // Along the rows first: kL streams at a time, as many as the hardware prefetcher follows.
    squares_end = depth / kL * kL;
    for (int64_t i = 0; i < ld; i += kL)
      for (int64_t j = 0; j < squares_end; j += kL) {
        Vec<A> square[kL];
#pragma GCC unroll 16
        for (int r = 0; r < kL; ++r) square[r] = i + r < width ? source.values(i + r, j, kL) : Vec<A>{};
        transpose<A>(square);
        const int n = ld - i < kL ? static_cast<int>(ld - i) : kL;
#pragma GCC unroll 16
        for (int c = 0; c < kL; ++c) {
          if (n == kL)
            store(dst + (j + c) * ld + i, square[c]);
          else
            store_partial(dst + (j + c) * ld + i, square[c], n);
        }
      }
  }
  for (int64_t j = squares_end; j < depth; ++j)
    for (int64_t i = 0; i < ld; ++i) dst[j * ld + i] = i < width ? source.value(i, j) : A{};
}

// Packs the row tiles [first, last) of A, each into height * K values, one after another. Where A is stored
// by columns this walks a few columns of all tiles before the next: a tile alone would use a piece of each
// cache line.
template <class T>
void pack_tiles(const Operand<T>& a, const EvenParts& tiles, int64_t first, int64_t last, int64_t k,
                Acc<T>* dst) {
  constexpr int64_t kColumns = 16;
  const int64_t step = a.row_stride == 1 ? kColumns : k;
  const int64_t origin = tiles.begin(first);
  for (int64_t p = 0; p < k; p += step)
    for (int64_t t = first; t < last; ++t) {
      const int64_t i = tiles.begin(t), height = tiles.begin(t + 1) - i;
      pack_panel(a.at(i, p), height, min(step, k - p), dst + (i - origin) * k + p * height, height);
    }
}

}  // namespace fastnn::FASTNN_ISA
