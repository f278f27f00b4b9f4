// The dot form of the matrix product: C = A B with the rows of A and the columns of B both contiguous along K
// (the forward of a linear layer on torch's weight, and Gram). Both operands are loaded along K, one vector
// of partial sums for each value of C; the lanes are added up at the end. Nothing is packed, so it wins where
// M or N is too small to pay for packing.
#pragma once

#include "gemm/blocking.h"
#include "gemm/operand.h"

namespace fastnn::FASTNN_ISA {

// Tile of C: kDotRows x kDotColumns vectors of partial sums, which cover FMA latency times issue width (4 x
// 2) and leave registers for kDotColumns vectors of B and one of A; for 16-lane vectors the 16 sums of 4 x 4
// also fill exactly one tree.
constexpr int kDotRows = 4;
#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int kDotColumns = 4;
#else
constexpr int kDotColumns = 2;
#endif

// Depth of one pass over K: the kDotRows rows of A (16 KB in float) stay in L1 while the columns of B stream
// past.
constexpr int64_t kDotDepth = 1024;

// (depth, a, a_row, b, b_row, tile, tile_stride, accumulate):
//   tile[i * tile_stride + j] (+)= sum over p < depth of a[i * a_row + p] * b[j * b_row + p].
template <class A>
using DotKernel = void (*)(int64_t, const A*, int64_t, const A*, int64_t, A*, int64_t, bool);

// The kernel for a tile of rows x columns: 1 <= rows <= kDotRows, 1 <= columns <= kDotColumns. For float and
// double.
template <class A>
DotKernel<A> dot_kernel_for(int rows, int columns);

// sums[r] = sum over p < depth of a[r * a_row + p] * x[p] for r < rows, 1 <= rows <= kLanes; the other lanes
// of `sums` are written too. For float and double.
template <class A>
void vector_dots(int rows, int64_t depth, const A* a, int64_t a_row, const A* x, A* sums);

}  // namespace fastnn::FASTNN_ISA
