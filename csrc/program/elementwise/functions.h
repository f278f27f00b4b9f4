// What micro-ops compute, on vectors of one type unless stated otherwise.
#pragma once

#include "core/activation/activation_vec.h"
#include "program/elementwise/vec_more.h"

namespace fastnn::FASTNN_ISA {

namespace {

struct Move {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return a;
  }
};
struct Add {
  template <class V>
  static FASTNN_INLINE V of(V a, V b) {
    return a + b;
  }
};
struct Sub {
  template <class V>
  static FASTNN_INLINE V of(V a, V b) {
    return a - b;
  }
};
struct Mul {
  template <class V>
  static FASTNN_INLINE V of(V a, V b) {
    return a * b;
  }
};
struct Div {
  template <class V>
  static FASTNN_INLINE V of(V a, V b) {
    return a / b;
  }
};
struct MultiplyAdd {
  template <class V>
  static FASTNN_INLINE V of(V a, V b, V c) {
    return a * b + c;
  }
};
struct Neg {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return -a;
  }
};
struct Abs {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    if constexpr (sizeof(LaneOfVector<V>) == 4)
      return bit_cast<V>(bit_cast<Vec<uint32_t>>(a) & 0x7fffffffu);
    else
      return bit_cast<V>(bit_cast<Vec<uint64_t>>(a) & 0x7fffffffffffffffu);
  }
};
struct AbsOfInteger {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return a < 0 ? -a : a;
  }
};
struct Sgn {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    const V one = V{} + 1;
    return a > 0 ? one : (a < 0 ? -one : V{});  // 0 for NaN, as in torch
  }
};
struct Reciprocal {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return LaneOfVector<V>(1) / a;
  }
};
struct Sqrt {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return sqrt(a);
  }
};
struct Rsqrt {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return LaneOfVector<V>(1) / sqrt(a);
  }
};
struct Exp {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return exp(a);
  }
};
struct Expm1 {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return expm1_of<LaneOfVector<V>>(a);
  }
};
struct Log {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return log(a);
  }
};
struct Log1p {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return log1p_of<LaneOfVector<V>>(a);
  }
};

// From the C library.
struct Log2 {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return each_lane(a, [](auto x) { return Library::log2(x); });
  }
};
struct Log10 {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return each_lane(a, [](auto x) { return Library::log10(x); });
  }
};
struct Sin {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return each_lane(a, [](auto x) { return Library::sin(x); });
  }
};
struct Cos {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return each_lane(a, [](auto x) { return Library::cos(x); });
  }
};
struct Tan {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return each_lane(a, [](auto x) { return Library::tan(x); });
  }
};
struct Atan {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return each_lane(a, [](auto x) { return Library::atan(x); });
  }
};
struct Erf {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return each_lane(a, [](auto x) { return Library::erf(x); });
  }
};
struct Floor {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return each_lane(a, [](auto x) { return Library::floor(x); });
  }
};
struct Ceil {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return each_lane(a, [](auto x) { return Library::ceil(x); });
  }
};
struct Round {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return each_lane(a, [](auto x) { return Library::round(x); });
  }
};
struct Trunc {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return each_lane(a, [](auto x) { return Library::trunc(x); });
  }
};
struct Pow {
  template <class V>
  static FASTNN_INLINE V of(V a, V b) {
    return each_lane(a, b, [](auto x, auto y) { return Library::pow(x, y); });
  }
};
struct Fmod {
  template <class V>
  static FASTNN_INLINE V of(V a, V b) {
    return each_lane(a, b, [](auto x, auto y) { return Library::fmod(x, y); });
  }
};
struct Remainder {
  template <class V>
  static FASTNN_INLINE V of(V a, V b) {
    return each_lane(a, b, [](auto x, auto y) { return Library::remainder(x, y); });
  }
};
struct Atan2 {
  template <class V>
  static FASTNN_INLINE V of(V a, V b) {
    return each_lane(a, b, [](auto x, auto y) { return Library::atan2(x, y); });
  }
};

// A NaN in either operand is kept.
struct Minimum {
  template <class V>
  static FASTNN_INLINE V of(V a, V b) {
    return b != b ? b : min(a, b);
  }
};
struct Maximum {
  template <class V>
  static FASTNN_INLINE V of(V a, V b) {
    return b != b ? b : max(a, b);
  }
};

struct Relu {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return max(a, V{});
  }
};

template <Activation kActivation>
struct Activate {
  template <class V>
  static FASTNN_INLINE V of(V a) {
    return activate<kActivation>(a);
  }
};

// The gradient dy is propagated through the activation; saved is its input, or for sigmoid and tanh its
// output.
template <Activation kActivation>
struct Through {
  template <class V>
  static FASTNN_INLINE V of(V dy, V saved) {
    return activation_gradient<kActivation>(dy, saved);
  }
};

// a where b is above c, or NaN, else 0.
struct Gate {
  template <class V>
  static FASTNN_INLINE V of(V a, V b, V c) {
    return b <= c ? V{} : a;
  }
};

}  // namespace

}  // namespace fastnn::FASTNN_ISA
