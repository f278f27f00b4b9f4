// Sums over each channel of contiguous (N, C, L) tensors, which decide batch normalisation.
//
// With L = 1 channels are columns, and a few vectors of them are summed at a time; else each channel is N
// runs of L values. Either way a channel belongs to one thread, and its sums to no number of threads.
#pragma once

#include "core/parallel.h"
#include "program/wide_sum.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Values that are worth a second thread.
constexpr int64_t kChannelGrain = 8192;

struct ChannelShape {
  int64_t n, c, l;
};

// Calls body(first channel, number of channels) for groups of channels that are best worked on together: of
// up to kGroup<T>.
template <class T>
constexpr int kGroup = 4 * kLanes<T>;

template <class T, class Body>
FASTNN_INLINE void for_channels(const ChannelShape& s, const Body& body) {
  const int64_t size = s.l == 1 ? kGroup<T> : 1, groups = (s.c + size - 1) / size;
  parallel_for(groups, kChannelGrain / (s.n * s.l * size + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const int64_t left = s.c - g * size;
      body(g * size, static_cast<int>(left < size ? left : size));
    }
  });
}

// Calls body(offset, channel within the group, lanes) for all vectors of a group of channels, in the order of
// memory; lanes are neighbours in memory, and `channel` is the first one's.
template <class T, class Body>
FASTNN_INLINE void for_vectors(const ChannelShape& s, int64_t first, int count, const Body& body) {
  constexpr int kStep = kLanes<T>;
  if (s.l == 1) {
    if (count == kGroup<T>) {
      for (int64_t r = 0; r < s.n; ++r)
        for (int j = 0; j < kGroup<T>; j += kStep) body(r * s.c + first + j, j, kStep);
      return;
    }
    for (int64_t r = 0; r < s.n; ++r)
      for (int j = 0; j < count; j += kStep)
        body(r * s.c + first + j, j, count - j < kStep ? count - j : kStep);
    return;
  }
  for (int64_t r = 0; r < s.n; ++r) {
    const int64_t at = (r * s.c + first) * s.l;
    for (int64_t k = 0; k < s.l; k += kStep) {
      const int64_t left = s.l - k;
      body(at + k, 0, left < kStep ? static_cast<int>(left) : kStep);
    }
  }
}

// Sums over the channels of a group.
template <class T>
struct ChannelSums {
  WideSum<T> of[kGroup<T> / kLanes<T>];

  // Values that lie in the same lanes as a vector at `channel` of the group.
  FASTNN_INLINE void add(int channel, Vec<T> v) { of[channel / kLanes<T>].add(v); }

  // One sum a channel.
  void store_to(double* sums, const ChannelShape& s) const {
    if (s.l != 1) {
      sums[0] = of[0].total();
      return;
    }
    for (int j = 0; j < kGroup<T> / kLanes<T>; ++j) of[j].store_to(sums + j * kLanes<T>);
  }
};

// A number a channel, for vectors: in lanes where channels are columns, in all lanes where they are runs.
template <class T>
struct PerChannel {
  T value[kGroup<T>];

  void set(const double* from, int count, const ChannelShape& s) {
    if (s.l != 1) count = kLanes<T>;
    for (int j = 0; j < kGroup<T>; ++j) value[j] = 0;
    for (int j = 0; j < count; ++j) value[j] = static_cast<T>(from[s.l == 1 ? j : 0]);
  }
  FASTNN_INLINE Vec<T> at(int channel) const { return load(value + channel); }
};

}  // namespace

}  // namespace fastnn::FASTNN_ISA
