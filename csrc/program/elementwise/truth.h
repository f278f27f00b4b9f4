// Micro-ops that compare, choose or change the type: bools are bytes that are 0 or 1.
#pragma once

#include "program/elementwise/lanes.h"

namespace fastnn::FASTNN_ISA {

namespace {

template <int L, class M>
FASTNN_INLINE Lanes<uint8_t, L> bytes_from_mask(M mask) {
  return bit_cast<Lanes<uint8_t, L>>(in_steps<int8_t, L>(mask) & 1);
}

struct Eq {
  template <class V>
  static FASTNN_INLINE auto of(V a, V b) {
    return bytes_from_mask<kCountOf<V>>(a == b);
  }
};
struct Ne {
  template <class V>
  static FASTNN_INLINE auto of(V a, V b) {
    return bytes_from_mask<kCountOf<V>>(a != b);
  }
};
struct Lt {
  template <class V>
  static FASTNN_INLINE auto of(V a, V b) {
    return bytes_from_mask<kCountOf<V>>(a < b);
  }
};
struct Le {
  template <class V>
  static FASTNN_INLINE auto of(V a, V b) {
    return bytes_from_mask<kCountOf<V>>(a <= b);
  }
};

// b where a, else c.
struct Where {
  template <class M, class V>
  static FASTNN_INLINE V of(M a, V b, V c) {
    return in_steps<UnsignedOf<sizeof(LaneOfVector<V>)>, kCountOf<V>>(a) != 0 ? b : c;
  }
};

struct And {
  template <class V>
  static FASTNN_INLINE V of(V a, V b) {
    return a & b;
  }
};
struct Or {
  template <class V>
  static FASTNN_INLINE V of(V a, V b) {
    return a | b;
  }
};
struct Xor {
  template <class V>
  static FASTNN_INLINE V of(V a, V b) {
    return a ^ b;
  }
};

// ---- from one type to another ----

template <class To>
struct Convert {
  template <class V>
  static FASTNN_INLINE auto of(V a) {
    if constexpr (sizeof(LaneOfVector<V>) == 1)  // via integers of the size of To
      return __builtin_convertvector(in_steps<UnsignedOf<sizeof(To)>, kCountOf<V>>(a),
                                     Lanes<To, kCountOf<V>>);
    else
      return __builtin_convertvector(a, Lanes<To, kCountOf<V>>);
  }
};
struct ToBool {
  template <class V>
  static FASTNN_INLINE auto of(V a) {
    return bytes_from_mask<kCountOf<V>>(a != 0);
  }
};

}  // namespace

}  // namespace fastnn::FASTNN_ISA
