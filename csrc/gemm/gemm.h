// Matrix product on the CPU: C (M, N) = A (M, K) B (K, N), any strides, four storage types, an epilogue that
// sees each value of C once, in registers.
//
// Columns are cut into panels of up to kTileColumns, rows into tiles of up to kTileRows, K into passes of up
// to kMaxDepth; tile_gemm.h multiplies them, swapped_gemm.h where the transposed product has less to pack,
// dot_gemm.h and vector_gemm.h the shapes for which packing does not pay, pair_gemm.h bfloat16 where the
// processor multiplies it by itself. Every value of C is the sum of its passes in order, and the order within
// a pass depends on the shape of the problem and on whether K is contiguous in A and B, the swapped form
// having that of tile_gemm.h. So it depends neither on the number of threads nor on what was packed.
#pragma once

#include <type_traits>

#include "gemm/dot_gemm.h"
#include "gemm/pair_gemm.h"
#include "gemm/swapped_gemm.h"
#include "gemm/tile_gemm.h"
#include "gemm/vector_gemm.h"

namespace fastnn::FASTNN_ISA {

// epilogue.direct(i, j) is the address of C (i, j) where C is contiguous and takes the sums as they are, else
// null. epilogue(i, j, v, n) gets the n <= kLanes values of row i from column j on. In Region::lower_triangle
// at least the values on and below the diagonal are computed, and the epilogue sees some above it too.
template <class T, class Epilogue>
void gemm(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b, const Epilogue& epilogue,
          Region region = Region::full) {
  if (m == 0 || n == 0) return;
  if constexpr (std::is_same_v<T, bfloat16>)
    if (const PairMicrokernels kernels = pair_microkernels())
      return PairGemm<Epilogue>(kernels, m, n, k, a, b, region, epilogue).run();
  if constexpr (std::is_same_v<T, Acc<T>>) {
    if (vector_form_pays(m, n, k, a, b)) return vector_gemm(m, n, k, a, b, epilogue);
    if (dot_form_pays(m, n, k, a, b, region)) return dot_gemm(m, n, k, a, b, epilogue, region);
    if (region == Region::full && swapped_form_pays(m, n, k, a, b))
      return swapped_gemm(m, n, k, a, b, epilogue);
  }
  TileGemm<T, Epilogue>(m, n, k, a, b, region, epilogue).run();
}

}  // namespace fastnn::FASTNN_ISA
