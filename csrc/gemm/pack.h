// Packing: copies a block of an operand into the order in which the micro-kernel reads it, converting 16-bit
// values to float on the way.
#pragma once

#include "core/transpose.h"
#include "gemm/blocking.h"
#include "gemm/operand.h"

namespace fastnn::FASTNN_ISA {

// dst[j * ld + i] = from[j * stride + i] for i < width, j < depth, and 0 for width <= i < ld.
template <class T>
void copy_lines(const T* from, int64_t stride, int64_t width, int64_t depth, Acc<T>* dst, int64_t ld) {
  constexpr int kL = kLanes<Acc<T>>;
  const int64_t whole = width / kL * kL;
  const int rest = static_cast<int>(width - whole), last = static_cast<int>(min(ld - whole, kL));
  for (int64_t j = 0; j < depth; ++j) {
    for (int64_t i = 0; i < whole; i += kL) store(dst + i, load(from + i));
    if (last) store_partial(dst + whole, load_partial(from + whole, rest), last);
    for (int64_t i = whole + kL; i < ld; ++i) dst[i] = 0;
    from += stride;
    dst += ld;
  }
}

// The same for a width and ld that the compiler knows: a tile of A.
template <int Width, class T>
void copy_lines(const T* from, int64_t stride, int64_t depth, Acc<T>* dst) {
  for (int64_t j = 0; j < depth; ++j) {
    T line[Width];
    Acc<T> values[Width];
    __builtin_memcpy(line, from + j * stride, sizeof(line));
    for (int i = 0; i < Width; ++i) values[i] = to_acc(line[i]);
    __builtin_memcpy(dst + j * Width, values, sizeof(values));
  }
}

// dst[j * ld + i] = source(i, j) for i < width, j < depth, and 0 for width <= i < ld. The packed form of
// `width` rows of A (ld = width), or, given B transposed, of `width` columns of B (ld a multiple of the
// vector).
template <class T>
void pack_panel(const Operand<T>& source, int64_t width, int64_t depth, Acc<T>* dst, int64_t ld) {
  using A = Acc<T>;
  constexpr int kL = kLanes<A>;
  if (source.row_stride == 1) {
    if (width == kTileRows && ld == kTileRows)
      copy_lines<kTileRows>(source.data, source.column_stride, depth, dst);
    else
      copy_lines(source.data, source.column_stride, width, depth, dst, ld);
    return;
  }
  if (source.column_stride != 1) {
    for (int64_t j = 0; j < depth; ++j)
      for (int64_t i = 0; i < ld; ++i) dst[j * ld + i] = i < width ? source.value(i, j) : A{};
    return;
  }
  constexpr int kFewColumns = 2;  // for which a square is not worth its shuffles
  // Along the rows first: kL streams at a time, as many as the hardware prefetcher follows.
  for (int64_t i = 0; i < ld; i += kL)
    for (int64_t j = 0; j < depth; j += kL) {
      const Operand<T> from = source.at(i, j);
      const int across = static_cast<int>(min(width - i, kL)), along = static_cast<int>(min(depth - j, kL));
      A* const to = dst + j * ld + i;
      Vec<A> square[kL];
      if (across == kL && along == kL) {
        load_transposed(from.data, from.row_stride, square);
#pragma GCC unroll 16
        for (int c = 0; c < kL; ++c) store(to + c * ld, square[c]);
        continue;
      }
      const int stored = static_cast<int>(min(ld - i, kL));
      if (along <= kFewColumns) {
        for (int c = 0; c < along; ++c)
          for (int r = 0; r < stored; ++r) to[c * ld + r] = r < across ? from.value(r, c) : A{};
        continue;
      }
#pragma GCC unroll 16
      for (int r = 0; r < kL; ++r) square[r] = r < across ? from.values(r, 0, along) : Vec<A>{};
      transpose<A>(square);
#pragma GCC unroll 16
      for (int c = 0; c < kL; ++c)
        if (c < along) store_lanes(to + c * ld, square[c], stored);
    }
}

// How the row tiles of A are packed. Where A is stored by rows they are copied as rows: the micro-kernel can
// read any strides, and transposing costs three times as much. Rows are padded by a cache line, or a depth
// that is a multiple of 2 KB would put them all on the same sets of L1.
template <class T>
struct TileLayout {
  bool by_rows;
  int64_t row_length;  // values from one row of A to the next

  TileLayout(const Operand<T>& a, int64_t depth)
      : by_rows(a.column_stride == 1),
        row_length(by_rows ? ceil_div(depth, kPadding) * kPadding + kPadding : depth) {}

  int64_t row_stride() const { return by_rows ? row_length : 1; }

 private:
  static constexpr int64_t kPadding = 64 / sizeof(Acc<T>);
};

// Packs the row tiles [first, last), which `a` begins with, one after another. Where A is stored by columns
// this walks a few columns of all tiles before the next: a tile alone would use a piece of each cache line.
template <class T>
void pack_tiles(const Operand<T>& a, const TileLayout<T>& layout, const EvenParts& tiles, int64_t first,
                int64_t last, int64_t depth, Acc<T>* dst) {
  constexpr int64_t kColumns = 16;
  const int64_t origin = tiles.begin(first);
  if (layout.by_rows)
    return copy_lines(a.data, a.row_stride, depth, tiles.begin(last) - origin, dst, layout.row_length);
  for (int64_t p = 0; p < depth; p += kColumns)
    for (int64_t t = first; t < last; ++t) {
      const int64_t i = tiles.begin(t), height = tiles.begin(t + 1) - i;
      pack_panel(a.at(i - origin, p), height, min(kColumns, depth - p),
                 dst + (i - origin) * depth + p * height, height);
    }
}

}  // namespace fastnn::FASTNN_ISA
