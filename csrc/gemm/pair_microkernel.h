// The register tile of a bfloat16 product on pairs: each operand holds two neighbours along K side by side in
// 32 bits, and one instruction (VDPBF16PS of AVX512_BF16) adds both products to a float. Twice the work of
// the float kernel in the same time.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastnn {

// (pairs, a, a_row, a_pair, b, b_row, tile, tile_stride, accumulate):
//   tile[i * tile_stride + j] (+)= sum over p < 2 pairs of a(i, p) * b(p, j), where the pair (i, p), (i, p +
//   1) is at a[i * a_row + (p / 2) * a_pair] and the pair (p, j), (p + 1, j) at b[(p / 2) * b_row + j].
// Pairs are added in order, the second value of each first (core/simd.h: add_products).
using PairMicrokernel = void (*)(int64_t, const bfloat16*, int64_t, int64_t, const uint32_t*, int64_t, float*,
                                 int64_t, bool);

// Finds the kernel for a tile of rows x vectors: 1 <= rows <= kTileRows, 1 <= vectors <= kTileVectors.
using PairMicrokernels = PairMicrokernel (*)(int rows, int vectors);

// What the selected instruction set multiplies bfloat16 matrices with; null where it converts them to float
// (dispatch/cpu_dispatch.h).
PairMicrokernels pair_microkernels();

namespace FASTNN_ISA {
PairMicrokernel pair_microkernel_for(int rows, int vectors);
}

}  // namespace fastnn
