// Transposes a square of kLanes x kLanes values that is in kLanes vector registers.
#pragma once

#include <type_traits>
#include <utility>

#include "core/simd.h"

namespace fastnn::FASTNN_ISA {

// Lane i is lane Lane[i] of the concatenation of a and b. GCC before 12 has no __builtin_shufflevector, Clang
// no __builtin_shuffle.
template <class T, int... Lane>
FASTNN_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Lane...);
#else
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  return __builtin_shuffle(a, b, Vec<Index>{Lane...});
#endif
}

// Swaps the blocks of W lanes off the diagonal of rows a and b, W rows apart.
template <class T, int W, int... Lane>
FASTNN_INLINE void swap_blocks(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, Lane...>) {
  constexpr int kN = kLanes<T>;
  const Vec<T> upper = shuffle<T, (Lane & W ? Lane - W + kN : Lane)...>(a, b);
  b = shuffle<T, (Lane & W ? Lane + kN : Lane + W)...>(a, b);
  a = upper;
}

template <class T, int W>
FASTNN_INLINE void transpose_stage(Vec<T> (&rows)[kLanes<T>]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i)
    if ((i & W) == 0) swap_blocks<T, W>(rows[i], rows[i + W], std::make_integer_sequence<int, kLanes<T>>{});
  if constexpr (W > 1) transpose_stage<T, W / 2>(rows);
}

// rows[r] = lane r of each of kLanes rows `stride` values apart. log2(kLanes) stages of kLanes
// shuffles each, of which the loads do the first.
template <class T>
FASTNN_INLINE void load_transposed(const T* from, int64_t stride, Vec<Acc<T>> (&rows)[kLanes<Acc<T>>]) {
  using A = Acc<T>;
  constexpr int kHalf = kLanes<A> / 2;
#pragma GCC unroll 8
  for (int r = 0; r < kHalf; ++r) {
    const T* const low = from + r * stride;
    const T* const high = low + kHalf * stride;
    if constexpr (sizeof(T) == sizeof(A)) {
      rows[r] = load_halves(low, high);
      rows[r + kHalf] = load_halves(low + kHalf, high + kHalf);
    } else {
      rows[r] = load(low);
      rows[r + kHalf] = load(high);
      swap_blocks<A, kHalf>(rows[r], rows[r + kHalf], std::make_integer_sequence<int, kLanes<A>>{});
    }
  }
  if constexpr (kHalf > 1) transpose_stage<A, kHalf / 2>(rows);
}

// The same for rows that are already in registers.
template <class T>
FASTNN_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
  transpose_stage<T, kLanes<T> / 2>(rows);
}

}  // namespace fastnn::FASTNN_ISA
