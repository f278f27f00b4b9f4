// Tile and block sizes of the matrix product, and how its work is cut.
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
#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int kTileRows = 8;
constexpr int kTileVectors = 3;
#else
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;
#endif

template <class A>
constexpr int kTileColumns = kTileVectors * kLanes<A>;

// Depth of one pass over K. A panel of B (depth x tile columns, 72 to 96 KB) is read from L2 once for each
// row tile.
constexpr int64_t kMaxDepth = 512;

// The i-th of n even parts of [0, total).
constexpr int64_t part_begin(int64_t total, int64_t n, int64_t i) { return total * i / n; }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fastnn::FASTNN_ISA
