// The register tile: rows x (vectors * kLanes) sums of products over one pass along K.
#pragma once

#include <utility>

#include "core/simd.h"
#include "gemm/blocking.h"

namespace fastnn::FASTNN_ISA {

// tile[i * tile_stride + j] (+)= sum over p < depth of a[i * a_row + p * a_column] * b[p * b_row + j].
// The order of the sum is that of p, whatever the tile's shape and the operands' strides: a value does not
// depend on how the product was cut.
template <int Rows, int Vectors, class A>
void microkernel(int64_t depth, const A* a, int64_t a_row, int64_t a_column, const A* b, int64_t b_row,
                 A* tile, int64_t tile_stride, bool accumulate) {
  constexpr int kL = kLanes<A>;
  Vec<A> sums[Rows][Vectors] = {};
  if (accumulate)
    for (int i = 0; i < Rows; ++i)
      for (int j = 0; j < Vectors; ++j) sums[i][j] = load(tile + i * tile_stride + j * kL);
  for (int64_t p = 0; p < depth; ++p) {
    Vec<A> bs[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) bs[j] = load(b + j * kL);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      Vec<A> ai = splat(a[i * a_row]);
      keep_in_register(ai);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sums[i][j] += ai * bs[j];
    }
    a += a_column;
    b += b_row;
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) store(tile + i * tile_stride + j * kL, sums[i][j]);
}

template <class A>
using Microkernel = void (*)(int64_t, const A*, int64_t, int64_t, const A*, int64_t, A*, int64_t, bool);

template <class A, int Vectors, int... Rows>
Microkernel<A> microkernel_of_rows(int rows, std::integer_sequence<int, Rows...>) {
  constexpr Microkernel<A> kTable[] = {microkernel<Rows + 1, Vectors, A>...};
  return kTable[rows - 1];
}

// 1 <= rows <= kTileRows, 1 <= vectors <= kTileVectors.
template <class A>
Microkernel<A> microkernel_for(int rows, int vectors) {
  constexpr std::make_integer_sequence<int, kTileRows> kRows{};
  if (vectors == 1) return microkernel_of_rows<A, 1>(rows, kRows);
  if constexpr (kTileVectors > 2)
    if (vectors == 3) return microkernel_of_rows<A, 3>(rows, kRows);
  return microkernel_of_rows<A, 2>(rows, kRows);
}

}  // namespace fastnn::FASTNN_ISA
