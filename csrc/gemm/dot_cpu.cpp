#include "gemm/dot.h"

#include "core/transpose.h"

namespace fastnn::FASTNN_ISA {

namespace {

// sums[l] = sum of the lanes of vectors[l], for kLanes vectors, in a tree of fixed shape: a transposition
// whose rows are added as soon as they are paired, 3 (kLanes - 1) instructions.
template <class T, int W>
FASTNN_INLINE void lane_sums_stage(Vec<T> (&vectors)[kLanes<T>]) {
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    swap_blocks<T, W>(vectors[i], vectors[i + W], std::make_integer_sequence<int, kLanes<T>>{});
    vectors[i] += vectors[i + W];
  }
  if constexpr (W > 1) lane_sums_stage<T, W / 2>(vectors);
}
template <class T>
FASTNN_INLINE Vec<T> lane_sums(Vec<T> (&vectors)[kLanes<T>]) {
  lane_sums_stage<T, kLanes<T> / 2>(vectors);
  return vectors[0];
}

template <int Rows, int Columns, class A>
void dot_kernel(int64_t depth, const A* a, int64_t a_row, const A* b, int64_t b_row, A* tile,
                int64_t tile_stride, bool accumulate) {
  constexpr int kL = kLanes<A>;
  constexpr int kTrees = (Rows * Columns + kL - 1) / kL;
  Vec<A> sums[kTrees][kL] = {};
  const auto step = [&](auto&& load_at) __attribute__((always_inline)) {
    Vec<A> bs[Columns];
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) bs[j] = load_at(b + j * b_row);
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) {
      Vec<A> ai = load_at(a + i * a_row);
      keep_in_register(ai);
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) sums[(i * Columns + j) / kL][(i * Columns + j) % kL] += ai * bs[j];
    }
  };
  int64_t p = 0;
  for (; p + kL <= depth; p += kL) step([p](const A* from) { return load(from + p); });
  if (const int rest = static_cast<int>(depth - p))
    step([p, rest](const A* from) { return load_partial(from + p, rest); });

  A flat[kTrees * kL];
#pragma GCC unroll 16
  for (int t = 0; t < kTrees; ++t) store(flat + t * kL, lane_sums<A>(sums[t]));
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Columns; ++j) {
      A& to = tile[i * tile_stride + j];
      to = accumulate ? to + flat[i * Columns + j] : flat[i * Columns + j];
    }
}

template <class A, int... Index>
DotKernel<A> find(int rows, int columns, std::integer_sequence<int, Index...>) {
  static constexpr DotKernel<A> kTable[] = {
      dot_kernel<Index / kDotColumns + 1, Index % kDotColumns + 1, A>...};
  return kTable[(rows - 1) * kDotColumns + columns - 1];
}

}  // namespace

template <class A>
DotKernel<A> dot_kernel_for(int rows, int columns) {
  return find<A>(rows, columns, std::make_integer_sequence<int, kDotRows * kDotColumns>{});
}

template DotKernel<float> dot_kernel_for<float>(int, int);
template DotKernel<double> dot_kernel_for<double>(int, int);

}  // namespace fastnn::FASTNN_ISA
