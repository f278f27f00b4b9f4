#include "gemm/dot.h"

#include <type_traits>

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

// Sixteen rows are more streams than the hardware prefetches from L2: each row prefetches its values this
// many vectors ahead, if it is at least as long. 1 x 256 x 256 took 2.35 us without and 2.05 with it, 1 x 784
// x 128 3.5 and 2.9 (Zen 5); at 64 it took 5% longer, as with the eight rows of AVX2.
constexpr int64_t kVectorsAhead = 3;
constexpr int64_t kAskedDepth = 128;

// The sums over one pass of `rows` rows, or of kLanes if kFull. The last row stands in for missing ones.
template <bool kFull, class A>
FASTNN_INLINE Vec<A> dots_of_pass(int rows, int64_t depth, const A* a, int64_t a_row, const A* x) {
  constexpr int kL = kLanes<A>, kHalf = kL / 2;
  Vec<A> sums[kL] = {};
  const int64_t half = kFull || rows > kHalf ? kHalf : rows - 1;
  const auto step = [&](int64_t p, auto asks, auto&& load_at) __attribute__((always_inline)) {
    Vec<A> factor = load_at(x + p);
    keep_in_register(factor);
    // Two chains of addresses: one would be as long as the sums, and all at once do not fit the registers.
    const A* low = a + p;
    const A* high = low + half * a_row;
#pragma GCC unroll 8
    for (int r = 0; r < kHalf; ++r) {
      sums[r] += load_at(low) * factor;
      sums[r + kHalf] += load_at(high) * factor;
      if constexpr (decltype(asks)::value) {
        __builtin_prefetch(low + kVectorsAhead * kL);
        __builtin_prefetch(high + kVectorsAhead * kL);
      }
      low += kFull || r + 1 < rows ? a_row : 0;
      high += kFull || r + kHalf + 1 < rows ? a_row : 0;
      forget_origin(low);
      forget_origin(high);
    }
  };
  int64_t p = 0;
  const auto whole = [](const A* from) { return load(from); };
  if (kL >= 16 && depth >= kAskedDepth)
    for (; p + kL <= depth; p += kL) step(p, std::true_type{}, whole);
  for (; p + kL <= depth; p += kL) step(p, std::false_type{}, whole);
  if (const int rest = static_cast<int>(depth - p))
    step(p, std::false_type{}, [rest](const A* from) { return load_partial(from, rest); });
  return lane_sums<A>(sums);
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

// Products that a lane adds up before its sum goes to the others: the error grows with the length.
constexpr int64_t kLaneChain = 128;

template <class A>
void vector_dots(int rows, int64_t depth, const A* a, int64_t a_row, const A* x, A* sums) {
  constexpr int64_t kPass = kLaneChain * kLanes<A>;
  Vec<A> total = {};
  for (int64_t p = 0; p < depth; p += kPass) {
    const int64_t length = min(kPass, depth - p);
    const Vec<A> part = rows == kLanes<A> ? dots_of_pass<true>(rows, length, a + p, a_row, x + p)
                                          : dots_of_pass<false>(rows, length, a + p, a_row, x + p);
    total = p ? total + part : part;
  }
  store(sums, total);
}

template DotKernel<float> dot_kernel_for<float>(int, int);
template DotKernel<double> dot_kernel_for<double>(int, int);
template void vector_dots<float>(int, int64_t, const float*, int64_t, const float*, float*);
template void vector_dots<double>(int, int64_t, const double*, int64_t, const double*, double*);

}  // namespace fastnn::FASTNN_ISA
