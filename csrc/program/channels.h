// Sums over each channel of contiguous (N, C, L) tensors, which dominate batch normalisation.
//
// With L = 1 channels are columns, and a few vectors of them are summed at a time; else each channel is N
// runs of L values. Either way a channel belongs to one thread, and its sums do not depend on their number.
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

// Vectors that are added in T before they are added to a sum in double.
constexpr int64_t kRun = 16;

// Calls body(offset, channel within the group, lanes) for all vectors of a group of channels, in the order of
// memory; lanes are neighbours in memory, and `channel` is the first one's. Calls pause() after at most kRun
// vectors of each channel.
template <class T, class Body, class Pause>
FASTNN_INLINE void for_vectors(const ChannelShape& s, int64_t first, int count, const Body& body,
                               const Pause& pause) {
  constexpr int kStep = kLanes<T>;
  if (s.l == 1) {
    for (int64_t block = 0; block < s.n; block += kRun) {
      const int64_t stop = block + kRun < s.n ? block + kRun : s.n;
      if (count == kGroup<T>) {
        for (int64_t r = block; r < stop; ++r)
#pragma GCC unroll 4
          for (int j = 0; j < kGroup<T>; j += kStep) body(r * s.c + first + j, j, kStep);
      } else {
        for (int64_t r = block; r < stop; ++r)
          for (int j = 0; j < count; j += kStep)
            body(r * s.c + first + j, j, count - j < kStep ? count - j : kStep);
      }
      pause();
    }
    return;
  }
  for (int64_t r = 0; r < s.n; ++r) {
    const int64_t at = (r * s.c + first) * s.l;
    for (int64_t block = 0; block < s.l; block += kRun * kStep) {
      const int64_t stop = block + kRun * kStep < s.l ? block + kRun * kStep : s.l;
      for (int64_t k = block; k < stop; k += kStep)
        body(at + k, 0, stop - k < kStep ? static_cast<int>(stop - k) : kStep);
      pause();
    }
  }
}
template <class T, class Body>
FASTNN_INLINE void for_vectors(const ChannelShape& s, int64_t first, int count, const Body& body) {
  for_vectors<T>(s, first, count, body, [] {});
}

// Sums over each channel of a group.
template <class T>
class ChannelSums {
 public:
  // Values that are in the same lanes as a vector at `channel` of the group.
  FASTNN_INLINE void add(int channel, Vec<T> v) { run_[channel / kLanes<T>] += v; }

  // To be called wherever for_vectors pauses.
  FASTNN_INLINE void pause() {
#pragma GCC unroll 4
    for (int j = 0; j < kGroup<T> / kLanes<T>; ++j) {
      whole_[j].add(run_[j]);
      run_[j] = Vec<T>{};
    }
  }

  // One sum per channel.
  void store_to(double* sums, const ChannelShape& s) const {
    if (s.l != 1) {
      sums[0] = whole_[0].total();
      return;
    }
    for (int j = 0; j < kGroup<T> / kLanes<T>; ++j) whole_[j].store_to(sums + j * kLanes<T>);
  }

 private:
  Vec<T> run_[kGroup<T> / kLanes<T>] = {};
  WideSum<T> whole_[kGroup<T> / kLanes<T>];
};

// A number per channel, for vectors: in lanes where channels are columns, in all lanes where they are runs.
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
