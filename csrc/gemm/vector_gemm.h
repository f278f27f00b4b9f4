// The product of a matrix and a vector, both contiguous along K: one row of a batch through a linear layer,
// or a layer with one output. The sums of a vector's worth of rows are added up in one tree at the end:
// nothing is packed, and only the last rows are padded.
#pragma once

#include "gemm/dot.h"
#include "gemm/operand.h"
#include "gemm/threads.h"

namespace fastnn::FASTNN_ISA {

// With many rows the packed form has less to add up below a whole vector of depth; with one row it would pack
// all of B.
template <class T>
bool vector_form_pays(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b) {
  return (m == 1 || n == 1) && a.column_stride == 1 && b.row_stride == 1 && k >= (m == 1 ? 1 : kLanes<T>);
}

// epilogue as in gemm.h. For types that are their own Acc.
template <class T>
void vector_gemm(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b,
                 const Epilogue<T>& epilogue) {
  constexpr int64_t kL = kLanes<T>;
  const bool one_row = m == 1;
  const int64_t count = one_row ? n : m, stride = one_row ? b.column_stride : a.row_stride;
  const T* const matrix = one_row ? b.data : a.data;
  const T* const vector = one_row ? a.data : b.data;
  parallel_for(ceil_div(count, kL), ceil_div(kGemmGrain, kL * k), [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * kL; at < min(end * kL, count); at += kL) {
      const int lanes = static_cast<int>(min(kL, count - at));
      alignas(64) T sums[2 * kL];  // whole vectors can be read of every row of one value
      vector_dots(lanes, k, matrix + at * stride, stride, vector, sums);
      if (epilogue.direct)
        store_lanes(epilogue.direct + at, load(sums), lanes);
      else if (one_row)
        epilogue(0, at, 1, lanes, sums, kL);
      else
        epilogue(at, 0, lanes, 1, sums, 1);
    }
  });
}

}  // namespace fastnn::FASTNN_ISA
