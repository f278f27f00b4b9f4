// Sums and extremes of runs of values, and of vectors of them.
#pragma once

#include "core/block_sum.h"
#include "program/elementwise/lanes.h"

namespace fastnn::FASTNN_ISA {

namespace {

template <class T>
constexpr int kLanesOf = kVectorBytes / static_cast<int>(sizeof(T));

// The definition of a reduction. A Part is the reduction of a run of values; `finish` makes a result of one.
// Vectors are those of `kLanesOf<T>` neighbouring results.

template <class T>
struct FloatSum {
  using Value = T;
  using Part = double;
  explicit FloatSum(double divisor) : divisor_(divisor) {}

  static Part identity() { return 0; }
  static FASTNN_INLINE Part join(Part a, Part b) { return a + b; }
  T finish(Part part) const { return static_cast<T>(part / divisor_); }

  static Part run(const T* x, int64_t n, int64_t stride) {
    Part total = 0;
    if (stride == 1) {
      for (int64_t k = 0; k < n; k += kBlock<T>)
        total += block_sum(x + k, min(kBlock<T>, n - k), T(0), [](Vec<T> v, int64_t, int) { return v; });
      return total;
    }
    Part parts[4] = {};
    int64_t k = 0;
    for (; k + 4 <= n; k += 4)
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) parts[u] += x[(k + u) * stride];
    for (; k < n; ++k) parts[0] += x[k * stride];
    return (parts[0] + parts[1]) + (parts[2] + parts[3]);
  }

  // Few values, sequentially.
  static FASTNN_INLINE T add(T a, T b) { return a + b; }
  T finish_few(T x) const { return static_cast<T>(static_cast<double>(x) / divisor_); }

  using Vector = Lanes<T, kLanesOf<T>>;
  static FASTNN_INLINE Vector none() { return Vector{}; }
  static FASTNN_INLINE Vector add(Vector a, Vector b) { return a + b; }
  Vector finish(Vector sums) const { return divisor_ == 1 ? sums : sums / static_cast<T>(divisor_); }

 private:
  const double divisor_;
};

struct IntegerSum {
  using Value = int64_t;
  using Part = uint64_t;  // wraps around as in torch
  using Vector = Lanes<int64_t, kLanesOf<int64_t>>;
  explicit IntegerSum(double) {}

  static Part identity() { return 0; }
  static FASTNN_INLINE Part join(Part a, Part b) { return a + b; }
  static int64_t finish(Part part) { return static_cast<int64_t>(part); }
  static Part run(const int64_t* x, int64_t n, int64_t stride) {
    Part total = 0;
    for (int64_t k = 0; k < n; ++k) total += static_cast<Part>(x[k * stride]);
    return total;
  }
  static FASTNN_INLINE Vector none() { return Vector{}; }
  static FASTNN_INLINE Vector add(Vector a, Vector b) { return a + b; }
  static Vector finish(Vector sums) { return sums; }
};

// The larger, or the smaller, of two; a NaN in either is kept.
template <class T, bool kLargest>
struct Extreme {
  using Value = T;
  using Part = T;
  using Vector = Lanes<T, kLanesOf<T>>;
  explicit Extreme(double) {}

  // Only bools are ever reduced over nothing: none of them is the largest, each of them is the smallest.
  static Part identity() { return lowest(); }
  static FASTNN_INLINE Part join(Part a, Part b) {
    if (b != b) return b;
    return (kLargest ? a < b : a > b) ? b : a;
  }
  static T finish(Part part) { return part; }
  static Part run(const T* x, int64_t n, int64_t stride) {
    constexpr int L = kLanesOf<T>;
    Part part = lowest();
    int64_t k = 0;
    if (stride == 1 && n >= L) {
      Vector v = none();
      for (; k + L <= n; k += L) v = add(v, read<T, L>(reinterpret_cast<const char*>(x + k)));
      for (int i = 0; i < L; ++i) part = join(part, v[i]);
    }
    for (; k < n; ++k) part = join(part, x[k * stride]);
    return part;
  }
  static FASTNN_INLINE T add(T a, T b) { return join(a, b); }
  static T finish_few(T x) { return x; }
  static FASTNN_INLINE Vector none() { return Vector{} + lowest(); }
  static FASTNN_INLINE Vector add(Vector a, Vector b) {
    const Vector v = (kLargest ? a < b : a > b) ? b : a;
    return b != b ? b : v;
  }
  static Vector finish(Vector v) { return v; }

 private:
  static constexpr T lowest() {
    if constexpr (sizeof(T) == 1)
      return kLargest ? 0 : 1;
    else if constexpr (kIsFloating<T>)
      return kLargest ? -T(__builtin_inf()) : T(__builtin_inf());
    else
      return kLargest ? INT64_MIN : INT64_MAX;
  }
};

}  // namespace

}  // namespace fastnn::FASTNN_ISA
