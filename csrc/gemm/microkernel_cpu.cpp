#include "gemm/microkernel.h"

#include <type_traits>
#include <utility>

namespace fastnn::FASTNN_ISA {

namespace {

// Steps along K by which B, which streams from L2, is prefetched: some 100 cycles. After the last row of a
// packed panel comes the next panel (3% of 512^3), but after that of B itself, memory that no tile may need:
// prefetching it doubled the time of products of depth 8.
constexpr int64_t kStepsAhead = 8;

constexpr int kUpperRows = 4;

template <bool Packs, int Rows, int Vectors, class A>
void microkernel(int64_t depth, const A* a, int64_t a_row, int64_t a_column, const A* b, int64_t b_row,
                 [[maybe_unused]] A* packed, A* tile, int64_t tile_stride, Found found) {
  constexpr int kL = kLanes<A>;
  Vec<A> sums[Rows][Vectors] = {};
  if (found == Found::waiting) {  // from L3, often; lines that are only written are best left to the stores
    const A* line = tile;
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) __builtin_prefetch(line + j * kL, 1);
      line += tile_stride;
      forget_origin(line);
    }
  }
  // Pointers of their own for the lower rows and for what is prefetched: with offsets of two pointers alone,
  // GCC ran out of registers and loaded six of them in each step.
  const A* lower = a + kUpperRows * a_row;
  const A* ahead = b + kStepsAhead * b_row;
  forget_origin(lower);
  forget_origin(ahead);
  const auto step = [&](auto asks) __attribute__((always_inline)) {
    Vec<A> bs[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) bs[j] = load(b + j * kL);
    if constexpr (Packs) {
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) store(packed + j * kL, bs[j]);
      packed += Vectors * kL;
    }
    if constexpr (decltype(asks)::value) {
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) __builtin_prefetch(ahead + j * kL);
      ahead += b_row;
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      Vec<A> ai = splat(i < kUpperRows ? a[i * a_row] : lower[(i - kUpperRows) * a_row]);
      keep_in_register(ai);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sums[i][j] += ai * bs[j];
    }
    a += a_column;
    lower += a_column;
    b += b_row;
  };
  // Packed panels have no gaps between their rows, as few others do.
  const int64_t asked = b_row == Vectors * kL ? depth : depth - kStepsAhead;
  int64_t p = 0;
// The loop itself costs as much as four of its FMAs if a neighbour on the same core competes for issue slots.
#pragma GCC unroll 4
  for (; p < asked; ++p) step(std::true_type{});
#pragma GCC unroll 4
  for (; p < depth; ++p) step(std::false_type{});
  // Added at the end rather than used as the starting value: a long chain of sums would round each product at
  // the size of the total.
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      A* const to = tile + j * kL;
      store(to, found != Found::nothing ? load(to) + sums[i][j] : sums[i][j]);
    }
    tile += tile_stride;
    forget_origin(tile);
  }
}

template <bool Packs, class A, int... Index>
Microkernel<A> find(int rows, int vectors, std::integer_sequence<int, Index...>) {
  static constexpr Microkernel<A> kTable[] = {
      microkernel<Packs, Index / kTileVectors + 1, Index % kTileVectors + 1, A>...};
  return kTable[(rows - 1) * kTileVectors + vectors - 1];
}

}  // namespace

template <class A>
Microkernel<A> microkernel_for(int rows, int vectors, bool packs) {
  constexpr auto kShapes = std::make_integer_sequence<int, kTileRows * kTileVectors>{};
  return packs ? find<true, A>(rows, vectors, kShapes) : find<false, A>(rows, vectors, kShapes);
}

template Microkernel<float> microkernel_for<float>(int, int, bool);
template Microkernel<double> microkernel_for<double>(int, int, bool);

}  // namespace fastnn::FASTNN_ISA
