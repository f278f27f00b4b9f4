// A matrix operand in place: any strides, and optionally the ReLU mask that its values pass through.
#pragma once

#include <cstdint>

#include "core/simd.h"

namespace fastnn::FASTNN_ISA {

// Value (i, j) is data[i * row_stride + j * column_stride], replaced by 0 where mask, addressed with strides
// of its own, is <= 0. A null mask replaces nothing. (NaN in the mask keeps the value: the gradient of ReLU
// passes there.)
template <class T>
struct Operand {
  const T* data;
  int64_t row_stride;
  int64_t column_stride;
  const T* mask = nullptr;
  int64_t mask_row_stride = 0;
  int64_t mask_column_stride = 0;

  Operand transposed() const {
    return {data, column_stride, row_stride, mask, mask_column_stride, mask_row_stride};
  }

  Operand at(int64_t i, int64_t j) const {
    Operand moved = *this;
    moved.data += i * row_stride + j * column_stride;
    if (mask) moved.mask += i * mask_row_stride + j * mask_column_stride;
    return moved;
  }

  // One value, or n <= kLanes values along a row whose elements (and mask) are contiguous.
  FASTNN_INLINE Acc<T> value(int64_t i, int64_t j) const {
    const Acc<T> v = to_acc(data[i * row_stride + j * column_stride]);
    return mask && to_acc(mask[i * mask_row_stride + j * mask_column_stride]) <= 0 ? Acc<T>{} : v;
  }
  FASTNN_INLINE Vec<Acc<T>> values(int64_t i, int64_t j, int n) const {
    const T* from = data + i * row_stride + j;
    const bool full = n == kLanes<Acc<T>>;
    Vec<Acc<T>> v = full ? load(from) : load_partial(from, n);
    if (mask) {
      const T* m = mask + i * mask_row_stride + j;
      v = (full ? load(m) : load_partial(m, n)) <= 0 ? Vec<Acc<T>>{} : v;
    }
    return v;
  }

  bool rows_contiguous() const { return column_stride == 1 && (!mask || mask_column_stride == 1); }
  bool columns_contiguous() const { return row_stride == 1 && (!mask || mask_row_stride == 1); }
};

}  // namespace fastnn::FASTNN_ISA
