// The epilogue that stores the sums unchanged.
#pragma once

#include <cstdint>

#include "core/simd.h"

namespace fastnn::FASTNN_ISA {

// C is contiguous, with `columns` columns.
template <class T>
struct StoreSums {
  T* sums;
  int64_t columns;

  T* direct() const { return sums; }
  FASTNN_INLINE void operator()(int64_t i, int64_t j, Vec<T> v, int lanes) const {
    store_lanes(sums + i * columns + j, v, lanes);
  }
};

}  // namespace fastnn::FASTNN_ISA
