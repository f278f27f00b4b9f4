// Transposes a square of kLanes x kLanes values that lies in kLanes vector registers.
#pragma once

#include <utility>

#include "core/simd.h"

namespace fastnn::FASTNN_ISA {

// Swaps the blocks of W lanes that lie off the diagonal of rows a and b, W rows apart.
template <class T, int W, int... Lane>
FASTNN_INLINE void swap_blocks(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, Lane...>) {
  constexpr int kN = kLanes<T>;
  const Vec<T> upper = __builtin_shufflevector(a, b, (Lane & W ? Lane - W + kN : Lane)...);
  b = __builtin_shufflevector(a, b, (Lane & W ? Lane + kN : Lane + W)...);
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
