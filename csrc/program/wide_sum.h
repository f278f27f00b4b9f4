// Sums of float values in double, lane by lane.
#pragma once

#include "core/simd.h"

namespace fastnn::FASTNN_ISA {

namespace {

template <class T>
struct WideSum {
  static constexpr int kParts = sizeof(double) / sizeof(T);
  Vec<double> part[kParts] = {};

  FASTNN_INLINE void add(Vec<T> v) {
    if constexpr (kParts == 1) {
      part[0] += v;
    } else {
      typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
      Half half[2];
      __builtin_memcpy(half, &v, sizeof(v));
      part[0] += __builtin_convertvector(half[0], Vec<double>);
      part[1] += __builtin_convertvector(half[1], Vec<double>);
    }
  }
  // kLanes<T> sums.
  FASTNN_INLINE void store_to(double* lanes) const {
    for (int p = 0; p < kParts; ++p) store(lanes + p * kLanes<double>, part[p]);
  }
  FASTNN_INLINE double total() const {
    Vec<double> all = part[0];
    if constexpr (kParts == 2) all += part[1];
    return sum(all);
  }
};

}  // namespace

}  // namespace fastnn::FASTNN_ISA
