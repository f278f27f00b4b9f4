// Tile and block sizes of the matrix product, and how its work is split.
#pragma once

#include <cstdint>

#include "core/simd.h"

namespace fastnn::FASTNN_ISA {

// Register tile: kTileRows x (kTileVectors vectors). Each step along K loads kTileVectors vectors of B and
// broadcasts kTileRows values of A for kTileRows * kTileVectors FMAs. The accumulators must cover FMA latency
// times issue width (4 x 2 on current cores) and, with the loads, fit in the register file:
//   AVX-512, 32 registers: 8 x 3 = 24 accumulators + 3 of B + 1 broadcast; 11 loads for 24 FMAs
//   AVX2,    16 registers: 6 x 2 = 12 accumulators + 2 of B + 1 broadcast;  8 loads for 12 FMAs
//   NEON,    32 registers: as AVX-512
//   SSE2,    16 registers: as AVX2, product and sum being separate instructions
//   WebAssembly, 15 registers that V8 leaves on x86: 4 x 3 = 12 accumulators; 7 loads for 12 products and as
//            many sums. 6 x 2 took 1.2 times as long.
#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int kTileRows = 8;
constexpr int kTileVectors = 3;
#elif defined(__wasm_simd128__)
constexpr int kTileRows = 4;
constexpr int kTileVectors = 3;
#else
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;
#endif

template <class A>
constexpr int kTileColumns = kTileVectors * kLanes<A>;

// Depth of one pass over K (measured: 5% faster than 512 at K = 784 and 1024). A panel of B (depth x tile
// columns, up to 192 KB) is read from L2 once for each row tile.
constexpr int64_t kMaxDepth = 1024;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Length of the chains of sums into which a pass is cut: products that are added one after the other before
// their sum is moved from the registers to the tile. Each is rounded at the size of the sum so far, so the
// error grows with the length, linearly for positive numbers and with its square root for mixed signs. These
// have at most 1.5 times the error of chains of 192, which MKL uses (one of 1024 had 4.5 and 2.3 times), and
// each takes 0.3% of the time. With fewer than kFewColumns columns MKL sums in several chains: a single one
// of 64 to 100 had 1.65 to 1.87 times its error, two have 1.2 to 1.4 times, and take 0 to 5% of the time of
// so small a product (64 x 10 of depth 64: 1.27 -> 1.32 us on a Zen 5).
constexpr int64_t kFewColumns = 16;
inline int64_t chain_length(int64_t depth, bool few_columns) {
  constexpr int64_t kOneChain = 192, kMaxChain = 256, kShortChain = 24;
  if (depth <= kOneChain) return few_columns && depth > kShortChain ? ceil_div(depth, 2) : depth;
  return ceil_div(depth, depth <= 2 * kMaxChain ? 2 : ceil_div(depth, kMaxChain));
}

// [0, total) split into `count` parts whose lengths differ by at most one. Divides once: a 64-bit division
// costs as much as several rows of a tile.
struct EvenParts {
  int64_t count;
  int64_t base;
  int64_t longer;  // the first `longer` parts have length base + 1

  EvenParts(int64_t total, int64_t parts) : count(parts), base(total / parts), longer(total % parts) {}
  int64_t begin(int64_t i) const { return i * base + min(i, longer); }
};

}  // namespace fastnn::FASTNN_ISA
