// What a layer's gradients need from dY besides its products: the gradient of its activation and the column
// sums.
#pragma once

#include "core/activation/activation_vec.h"
#include "core/activation/apply.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "gemm/blocking.h"
#include "gemm/operand.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Calls put(i, j, g, lanes) for the vectors of rows [first, last) of g = act'(z) dY, of n columns.
template <class T, class Put>
FASTNN_INLINE void gradient_rows(int64_t first, int64_t last, int64_t n, const Operand<T>& dy,
                                 Activation activation, const Operand<T>& saved, const Put& put) {
  using S = Acc<T>;
  constexpr int64_t kL = kLanes<S>, kPiece = 16 * kL;  // a piece stays in L1
  const auto lanes_from = [](int64_t j, int64_t end) { return static_cast<int>(min(kL, end - j)); };
  const auto each = [&](const auto& gradient) __attribute__((always_inline)) {
    for (int64_t i = first; i < last; ++i)
      for (int64_t j = 0; j < n; j += kL) {
        const int lanes = lanes_from(j, n);
        put(i, j, gradient(i, j, lanes), lanes);
      }
  };
  if (activation == Activation::none)
    return each([&](int64_t i, int64_t j, int lanes) { return dy.values(i, j, lanes); });
  if (activation == Activation::relu)
    return each([&](int64_t i, int64_t j, int lanes) {
      return activation_gradient<Activation::relu>(dy.values(i, j, lanes), saved.values(i, j, lanes));
    });
  alignas(64) S g[kPiece], s[kPiece];
  for (int64_t i = first; i < last; ++i)
    for (int64_t left = 0; left < n; left += kPiece) {
      const int64_t end = min(left + kPiece, n);
      for (int64_t j = left; j < end; j += kL) {
        store(g + j - left, dy.values(i, j, lanes_from(j, end)));
        store(s + j - left, saved.values(i, j, lanes_from(j, end)));
      }
      apply_gradient(activation, g, s, ceil_div(end - left, kL) * kL);
      for (int64_t j = left; j < end; j += kL) put(i, j, load(g + j - left), lanes_from(j, end));
    }
}

// The one pass over dY (M, N): g = act'(z) dY, stored contiguously if `g` is given, and db = column sums of g
// if `db` is given, which takes them as a product's epilogue does (gemm/epilogue.h). Rows are summed in
// blocks of fixed size and then the blocks, which bounds the rounding error by (block + M / block) eps and
// makes values independent of the number of threads.
template <class T, class Sink>
void gradient_pass(int64_t m, int64_t n, const Operand<T>& dy, Activation activation, const Operand<T>& saved,
                   T* g, const Sink* db) {
  using S = Acc<T>;
  constexpr int64_t kL = kLanes<S>;
  constexpr int64_t kRowBlock = 32;
  constexpr int64_t kGrain = 32768;  // values, as for any elementwise pass
  const int64_t blocks = ceil_div(m, kRowBlock), stride = ceil_div(n, kL) * kL;
  const ScopedBuffer buffer(db ? blocks * stride * sizeof(S) : 0);
  S* const sums = static_cast<S*>(buffer.data());
  parallel_for(blocks, ceil_div(kGrain, kRowBlock * n + 1), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      S* const block_sums = db ? sums + block * stride : nullptr;
      const int64_t first = block * kRowBlock;
      gradient_rows(first, min(first + kRowBlock, m), n, dy, activation, saved,
                    [&](int64_t i, int64_t j, Vec<S> v, int lanes) {
                      if (g) store_lanes(g + i * n + j, v, lanes);
                      if (db) store(block_sums + j, i == first ? v : load(block_sums + j) + v);
                    });
    }
  });
  if (!db) return;
  for (int64_t j = 0; j < n; j += kL) {
    Vec<S> total{};
    for (int64_t block = 0; block < blocks; ++block) total += load(sums + block * stride + j);
    (*db)(0, j, total, static_cast<int>(min(kL, n - j)));
  }
}

}  // namespace

}  // namespace fastnn::FASTNN_ISA
