// Transposes a square of kLanes x kLanes values that lies in kLanes vector registers.
#pragma once

#include <type_traits>
#include <utility>

#include "core/simd.h"

namespace fastnn::FASTNN_ISA {

// Lane i is lane Lane[i] of a and b put one behind the other. GCC before 12 has no __builtin_shufflevector,
// Clang no
// __builtin_shuffle.
template <class T, int... Lane>
FASTNN_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Lane...);
#else
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  return __builtin_shuffle(a, b, Vec<Index>{Lane...});
#endif
}

// Swaps the blocks of W lanes that lie off the diagonal of rows a and b, W rows apart.
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

// log2(kLanes) stages of kLanes shuffles each.
template <class T>
FASTNN_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
  transpose_stage<T, kLanes<T> / 2>(rows);
}

}  // namespace fastnn::FASTNN_ISA
