// Sums over a run of values that keep the rounding error near one ulp.
#pragma once

#include "core/vec_math.h"

namespace fastnn::FASTNN_ISA {

namespace {

// The first n lanes of v, and `fill` in the others.
template <class A>
FASTNN_INLINE Vec<A> first_lanes(Vec<A> v, int n, A fill = 0) {
  using Int = typename FloatFormat<A>::Int;
  Vec<Int> lane;
  for (int i = 0; i < kLanes<A>; ++i) lane[i] = i;
  return lane < Int(n) ? v : splat(fill);
}

// The first n lanes of p, and `fill` in the others.
template <class T>
FASTNN_INLINE Vec<Acc<T>> load_filled(const T* p, int n, Acc<T> fill) {
  return first_lanes<Acc<T>>(load_partial(p, n), n, fill);
}

// Elements that are summed in the lanes of four vectors before they go to a sum in double: 64 additions a
// lane keep the rounding error near one ulp, and a block read for its maximum is still in L1
// when its exponentials are taken.
template <class A>
constexpr int64_t kBlock = 64 * 4 * kLanes<A>;

// Sum of term(x_k, k, lanes) over k < n; lanes past the end see `fill`.
template <class T, class Term>
FASTNN_INLINE double block_sum(const T* x, int64_t n, Acc<T> fill, const Term& term) {
  using A = Acc<T>;
  constexpr int kStep = kLanes<A>;
  Vec<A> s[4] = {};
  int64_t k = 0;
  for (; k + 4 * kStep <= n; k += 4 * kStep)
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) s[u] += term(load(x + k + u * kStep), k + u * kStep, kStep);
  for (; k + kStep <= n; k += kStep) s[0] += term(load(x + k), k, kStep);
  if (k < n) {
    const int rest = static_cast<int>(n - k);
    s[1] += term(load_filled(x + k, rest, fill), k, rest);
  }
  return sum((s[0] + s[1]) + (s[2] + s[3]));
}

}  // namespace

}  // namespace fastnn::FASTNN_ISA
