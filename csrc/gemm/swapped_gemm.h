// The product via its transpose, C^T = B^T A^T: for the forward of a linear layer with more outputs than the
// batch has rows. The small input is then packed instead of the large weight, whose rows are read in place;
// the cost is a pass that transposes C.
#pragma once

#include "core/scratch.h"
#include "gemm/store_sums.h"
#include "gemm/tile_gemm.h"

namespace fastnn::FASTNN_ISA {

// Most rows, and least depth, for which that was measured to pay off (Cascade Lake, M x N x K, speed-up):
// 32x512x512
// 1.42, 64x512x512 1.17, 128x512x784 1.08, 64x128x784 1.09, 192x1024x1024 1.02, 256x1024x1024 0.96; 64x128x64
// 1.02, 64x128x32 0.99, 128x512x16 0.91.
constexpr int64_t kSwappedRows = 192;
constexpr int64_t kSwappedDepth = 64;

// Bytes of C^T that are computed before they are transposed: about half of L2.
constexpr int64_t kSwappedBytes = int64_t{512} << 10;

// Each thread packs the rows of x for itself, whereas in the other form they share the packing of W: hence
// the factor for threads. The padding of a quarter is what was measured to pay off at a depth of 64.
template <class T>
bool swapped_form_pays(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b) {
  const int64_t padded = ceil_div(m, kLanes<T>) * kLanes<T>;
  return a.column_stride == 1 && b.row_stride == 1 && m * worthwhile_threads(m * n * k) < n &&
         m <= kSwappedRows && 3 * padded <= 4 * m && k >= kSwappedDepth && n >= kFewColumns;
}

// epilogue as in gemm.h. For types that are their own Acc.
template <class T>
void swapped_gemm(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b,
                  const Epilogue<T>& epilogue) {
  constexpr int64_t kL = kLanes<T>, kSize = sizeof(T);
  const int64_t down = ceil_div(m, kL);  // squares of C
  const EvenParts parts(n, ceil_div(n * m * kSize, kSwappedBytes));
  for (int64_t part = 0; part < parts.count; ++part) {
    const int64_t left = parts.begin(part), width = parts.begin(part + 1) - left,
                  across = ceil_div(width, kL);
    // The last squares are read whole, beyond the last row of C^T and its last column.
    const int64_t values = (across * kL - 1) * m + down * kL;
    T* const sums = static_cast<T*>(shared_scratch(Scratch::transposed, static_cast<size_t>(values * kSize)));
    const StoreSums<T> store{sums, m};
    TileGemm<T>(width, m, k, b.at(0, left).transposed(), a.transposed(), Region::full, epilogue_of<T>(store),
                false)
        .run();
    parallel_for(down * across, ceil_div(kPackGrain, kL * kL), [&](int64_t begin, int64_t end) {
      int64_t i = begin / across * kL, j = begin % across * kL;
      for (int64_t square = begin; square < end; ++square) {
        Vec<T> rows[kL];
        load_transposed(sums + j * m + i, m, rows);
        epilogue(i, left + j, min(kL, m - i), min(kL, width - j), reinterpret_cast<const T*>(rows), kL);
        j += kL;
        if (j < width) continue;
        j = 0;
        i += kL;
      }
    });
  }
}

}  // namespace fastnn::FASTNN_ISA
