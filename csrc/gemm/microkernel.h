// The register tile: rows x (vectors * kLanes) sums of products over one pass along K.
#pragma once

#include "core/simd.h"
#include "gemm/blocking.h"

namespace fastnn::FASTNN_ISA {

// What a kernel finds in the tile: nothing of use, sums of an earlier pass along K, which have to come
// from memory, or sums of the call just before.
enum class Found { nothing, waiting, fresh };

// (depth, a, a_row, a_column, b, b_row, packed, tile, tile_stride, found):
//   tile[i * tile_stride + j] (+)= sum over p < depth of a[i * a_row + p * a_column] * b[p * b_row + j].
// A kernel that packs also leaves the rows of b one after the other at `packed`, for later tiles.
// The order of the sum is that of p, whatever the tile's shape and the operands' strides: a value does not
// depend on how the product was split.
template <class A>
using Microkernel = void (*)(int64_t, const A*, int64_t, int64_t, const A*, int64_t, A*, A*, int64_t, Found);

// The kernel for a tile of rows x vectors: 1 <= rows <= kTileRows, 1 <= vectors <= kTileVectors. For float
// and double.
template <class A>
Microkernel<A> microkernel_for(int rows, int vectors, bool packs);

}  // namespace fastnn::FASTNN_ISA
