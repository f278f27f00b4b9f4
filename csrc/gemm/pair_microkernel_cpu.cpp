#include "gemm/pair_microkernel.h"

#include <utility>

#include "core/simd.h"
#include "gemm/blocking.h"

namespace fastnn::FASTNN_ISA {

namespace {

// As in microkernel_cpu.cpp. The emulation is not worth the code.
#if defined(__AVX512BF16__)
constexpr int kUnrolledPairs = 4;
#else
constexpr int kUnrolledPairs = 1;
#endif

// The float tile's shape serves: loads and instructions of a step are the same, and 24 sums cover a latency
// of up to 12 cycles at two instructions a cycle. The instruction takes 6 at two a cycle on Zen 5, and about
// 12 at one a cycle on Intel.
template <int Rows, int Vectors>
void pair_microkernel(int64_t pairs, const bfloat16* a, int64_t a_row, int64_t a_pair, const uint32_t* b,
                      int64_t b_row, float* tile, int64_t tile_stride, bool accumulate) {
  constexpr int kL = kLanes<float>;
  Vec<float> sums[Rows][Vectors] = {};
#pragma GCC unroll kUnrolledPairs
  for (int64_t p = 0; p < pairs; ++p) {
    Pairs bs[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) __builtin_memcpy(&bs[j], b + j * kL, sizeof(Pairs));
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      Pairs ai = splat_pair(a + i * a_row);
      keep_in_register(ai);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sums[i][j] = add_products(sums[i][j], ai, bs[j]);
    }
    a += a_pair;
    b += b_row;
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      float* const to = tile + i * tile_stride + j * kL;
      store(to, accumulate ? load(to) + sums[i][j] : sums[i][j]);
    }
}

template <int... Index>
PairMicrokernel find(int rows, int vectors, std::integer_sequence<int, Index...>) {
  static constexpr PairMicrokernel kTable[] = {
      pair_microkernel<Index / kTileVectors + 1, Index % kTileVectors + 1>...};
  return kTable[(rows - 1) * kTileVectors + vectors - 1];
}

}  // namespace

PairMicrokernel pair_microkernel_for(int rows, int vectors) {
  return find(rows, vectors, std::make_integer_sequence<int, kTileRows * kTileVectors>{});
}

}  // namespace fastnn::FASTNN_ISA
