// What a layer's gradients need of dY beside its products: the gradient of its activation and the column
// sums.
#pragma once

#include "core/activation/activation_vec.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "gemm/blocking.h"
#include "gemm/operand.h"

namespace fastnn::FASTNN_ISA {

namespace {

// The one pass over dY (M, N): g = act'(z) dY, stored contiguously if `g` is given, and db = column sums of g
// if `db` is given, which takes them as a product's epilogue does (gemm.h). Rows are summed in blocks of
// fixed size and then the blocks, which bounds the rounding error by (block + M / block) eps and makes the
// number of threads change no value.
template <class T, Activation A, class Sink>
void gradient_pass(int64_t m, int64_t n, const Operand<T>& dy, const Operand<T>& saved, T* g,
                   const Sink* db) {
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
      for (int64_t i = block * kRowBlock; i < min((block + 1) * kRowBlock, m); ++i)
        for (int64_t j = 0; j < n; j += kL) {
          const int lanes = static_cast<int>(min(kL, n - j));
          Vec<S> v = dy.values(i, j, lanes);
          if constexpr (A != Activation::none) v = activation_gradient<A>(v, saved.values(i, j, lanes));
          if (g) store_lanes(g + i * n + j, v, lanes);
          if (db) store(block_sums + j, i == block * kRowBlock ? v : load(block_sums + j) + v);
        }
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
