// Matrix product on the CPU: C (M, N) = A (M, K) B (K, N), any strides, four storage types, an epilogue that
// sees each value of C once, while it is in L1.
//
// Columns are cut into panels of up to kTileColumns, rows into tiles of up to kTileRows, K into passes of up
// to kMaxDepth; tile_gemm.h multiplies them, swapped_gemm.h where the transposed product has less to pack,
// dot_gemm.h and vector_gemm.h the shapes for which packing does not pay off, pair_gemm.h bfloat16 if the
// processor has an instruction for it. Every value of C is the sum of its passes in order, and the order
// within a pass depends on the shape of the problem and on whether K is contiguous in A and B, the swapped
// form having that of tile_gemm.h. So it depends neither on the number of threads nor on what was packed.
#pragma once

#include "gemm/epilogue.h"
#include "gemm/operand.h"

namespace fastnn::FASTNN_ISA {

// In the lower triangle at least the values on and below the diagonal are computed, and the epilogue sees
// some above it too.
enum class Region { full, lower_triangle };

// For the four storage types.
template <class T>
void gemm(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b,
          const Epilogue<T>& epilogue, Region region = Region::full);

}  // namespace fastnn::FASTNN_ISA
