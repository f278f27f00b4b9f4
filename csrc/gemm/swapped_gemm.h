// The product by way of its transpose, C^T = B^T A^T: for the forward of a linear layer that has more outputs
// than the batch has rows. What is packed then is the small input and not the large weight, whose rows are
// read where they lie; the price is a pass that transposes C.
#pragma once

#include "core/scratch.h"
#include "gemm/tile_gemm.h"

namespace fastnn::FASTNN_ISA {

// Most rows, and least depth, for which that was seen to pay (Cascade Lake, M x N x K, speed-up): 32x512x512
// 1.42, 64x512x512 1.17, 128x512x784 1.08, 64x128x784 1.09, 192x1024x1024 1.02, 256x1024x1024 0.96; 64x128x64
// 1.02, 64x128x32 0.99, 128x512x16 0.91.
constexpr int64_t kSwappedRows = 192;
constexpr int64_t kSwappedDepth = 64;

// Bytes of C^T that are computed before they are transposed: about half of L2.
constexpr int64_t kSwappedBytes = int64_t{512} << 10;

template <class T>
bool swapped_form_pays(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b) {
  const int64_t padded = ceil_div(m, kLanes<Acc<T>>) * kLanes<Acc<T>>;
  return sizeof(T) == sizeof(Acc<T>) && a.column_stride == 1 && b.row_stride == 1 && m < n &&
         m <= kSwappedRows && 3 * padded <= 4 * m && k >= kSwappedDepth;
}

// Stores sums as they are.
template <class A>
struct StoreSums {
  A* sums;
  int64_t columns;

  A* direct(int64_t i, int64_t j) const { return sums + i * columns + j; }
  FASTNN_INLINE void operator()(int64_t i, int64_t j, Vec<A> v, int lanes) const {
    store_lanes(sums + i * columns + j, v, lanes);
  }
};

// epilogue as in gemm.h.
template <class T, class Epilogue>
void swapped_gemm(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b,
                  const Epilogue& epilogue) {
  using A = Acc<T>;
  constexpr int64_t kL = kLanes<A>, kSize = sizeof(A);
  const EvenParts parts(n, ceil_div(n * m * kSize, kSwappedBytes));
  for (int64_t part = 0; part < parts.count; ++part) {
    const int64_t left = parts.begin(part), width = parts.begin(part + 1) - left;
    // The last square may be read beyond both ends of C^T.
    const int64_t values = (ceil_div(width, kL) * kL - 1) * m + ceil_div(m, kL) * kL;
    A* const sums = static_cast<A*>(shared_scratch(Scratch::transposed, static_cast<size_t>(values * kSize)));
    TileGemm<T, StoreSums<A>>(width, m, k, b.at(0, left).transposed(), a.transposed(), Region::full,
                              {sums, m})
        .run();
    parallel_for(ceil_div(m, kL), ceil_div(kPackGrain, width * kL), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * kL; i < min(end * kL, m); i += kL)
        for (int64_t j = 0; j < width; j += kL) {
          Vec<A> square[kL];
          load_transposed(sums + j * m + i, m, square);
          const int lanes = static_cast<int>(min(kL, width - j));
#pragma GCC unroll 16
          for (int r = 0; r < kL; ++r)
            if (r < m - i) epilogue(i + r, left + j, square[r], lanes);
        }
    });
  }
}

}  // namespace fastnn::FASTNN_ISA
