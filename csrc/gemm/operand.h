// A matrix operand where it is, with any strides.
#pragma once

#include <cstdint>

#include "core/simd.h"

namespace fastnn::FASTNN_ISA {

// Value (i, j) is data[i * row_stride + j * column_stride].
template <class T>
struct Operand {
  const T* data;
  int64_t row_stride;
  int64_t column_stride;

  Operand transposed() const { return {data, column_stride, row_stride}; }

  Operand at(int64_t i, int64_t j) const {
    return {data + i * row_stride + j * column_stride, row_stride, column_stride};
  }

  FASTNN_INLINE Acc<T> value(int64_t i, int64_t j) const {
    return to_acc(data[i * row_stride + j * column_stride]);
  }

  // The n <= kLanes values of row i from column j on.
  FASTNN_INLINE Vec<Acc<T>> values(int64_t i, int64_t j, int n) const {
    if (column_stride != 1) {
      T gathered[kLanes<Acc<T>>] = {};
      for (int l = 0; l < n; ++l) gathered[l] = data[i * row_stride + (j + l) * column_stride];
      return load(gathered);
    }
    const T* from = data + i * row_stride + j;
    return n == kLanes<Acc<T>> ? load(from) : load_partial(from, n);
  }
};

}  // namespace fastnn::FASTNN_ISA
