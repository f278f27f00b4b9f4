// What a product instruction does with its sums where ops/linear/ has no kernel for just that.
#pragma once

#include "gemm/activated_epilogue.h"
#include "gemm/operand.h"

namespace fastnn::FASTNN_ISA {

namespace {

// A matrix to write to, with any strides; data is null if absent.
template <class T>
struct Target {
  T* data;
  int64_t row_stride, column_stride;

  FASTNN_INLINE void put(int64_t i, int64_t j, Vec<T> v, int lanes) const {
    T* const to = data + i * row_stride + j * column_stride;
    if (column_stride == 1) return store_lanes(to, v, lanes);
    for (int l = 0; l < lanes; ++l) to[l * column_stride] = v[l];
  }
};

// z = alpha sum + beta d, then c = act(z) or, with kGradient, act'(saved) z. d and saved may alias c.
template <class T, bool kWithGradient>
struct ProductEpilogue {
  static constexpr bool kGradient = kWithGradient;
  Target<T> c, z;
  Operand<T> d, saved;
  T alpha, beta;
  Activation activation;

  FASTNN_INLINE Vec<T> before(int64_t i, int64_t j, Vec<T> v, int lanes) const {
    v *= alpha;
    if (d.data) v += d.values(i, j, lanes) * beta;
    if (z.data) z.put(i, j, v, lanes);
    return v;
  }
  FASTNN_INLINE void after(int64_t i, int64_t j, Vec<T> v, int lanes) const { c.put(i, j, v, lanes); }
};

}  // namespace

}  // namespace fastnn::FASTNN_ISA
