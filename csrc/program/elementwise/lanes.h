// Vectors of L values of any of the four types that elementwise programs compute in.
#pragma once

#include "core/simd.h"

namespace fastnn::FASTNN_ISA {

namespace {

// A micro-op on several types takes as many values at once as a vector of the widest holds, so its vectors of
// the others are shorter.
template <class T, int L>
struct LanesOf {
  typedef T type __attribute__((vector_size(L * sizeof(T))));
};
template <class T, int L>
using Lanes = typename LanesOf<T, L>::type;

// T of T or T&: the type of an element of a vector depends on the compiler.
template <class T>
struct ElementOf {
  using type = T;
};
template <class T>
struct ElementOf<T&> {
  using type = T;
};
template <class T>
struct ElementOf<T&&> {
  using type = T;
};

// The type of the values of a vector of any length.
template <class V>
using LaneOfVector = typename ElementOf<decltype(V{}[0])>::type;
template <class V>
constexpr int kCountOf = static_cast<int>(sizeof(V) / sizeof(LaneOfVector<V>));

template <class... T>
constexpr int lanes_of() {
  int widest = 1;
  const int sizes[] = {static_cast<int>(sizeof(T))...};
  for (const int size : sizes) widest = size > widest ? size : widest;
  return kVectorBytes / widest;
}

// Whether these are the vectors of core/simd.h.
template <class T>
constexpr bool kIsFloating = false;
template <>
constexpr bool kIsFloating<float> = true;
template <>
constexpr bool kIsFloating<double> = true;
template <class T, int L>
constexpr bool kIsWholeVector = kIsFloating<T> && L * sizeof(T) == kVectorBytes;

template <int kBytes>
struct UnsignedOfSize;
template <>
struct UnsignedOfSize<1> {
  using type = uint8_t;
};
template <>
struct UnsignedOfSize<2> {
  using type = uint16_t;
};
template <>
struct UnsignedOfSize<4> {
  using type = uint32_t;
};
template <>
struct UnsignedOfSize<8> {
  using type = uint64_t;
};
template <int kBytes>
using UnsignedOf = typename UnsignedOfSize<kBytes>::type;

// Integers of another size, halved or doubled in each step: GCC 12 splits vectors into scalars for larger
// steps.
// Widening pads with zeros; masks and whole numbers below 256 survive narrowing.
template <class To, int L, class V>
FASTNN_INLINE Lanes<To, L> in_steps(V v) {
  constexpr int kFrom = static_cast<int>(sizeof(V)) / L, kTo = sizeof(To);
  if constexpr (kFrom == kTo) {
    return bit_cast<Lanes<To, L>>(v);
  } else {
    const auto from = bit_cast<Lanes<UnsignedOf<kFrom>, L>>(v);
    constexpr int kNext = kFrom < kTo ? 2 * kFrom : kFrom / 2;
    return in_steps<To, L>(__builtin_convertvector(from, Lanes<UnsignedOf<kNext>, L>));
  }
}

template <class T, int L>
FASTNN_INLINE Lanes<T, L> read(const char* p) {
  Lanes<T, L> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <class T, int L>
FASTNN_INLINE void write(char* p, Lanes<T, L> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// The first n < L values; memory beyond them is not touched.
template <class T, int L>
FASTNN_INLINE Lanes<T, L> read_some(const char* p, int n) {
  if constexpr (kIsWholeVector<T, L>) {
    return load_partial(reinterpret_cast<const T*>(p), n);
  } else {
    T values[L] = {};
    for (int i = 0; i < n; ++i) __builtin_memcpy(values + i, p + i * sizeof(T), sizeof(T));
    return read<T, L>(reinterpret_cast<const char*>(values));
  }
}

template <class T, int L>
FASTNN_INLINE void write_some(char* p, Lanes<T, L> v, int n) {
  if constexpr (kIsWholeVector<T, L>) {
    store_partial(reinterpret_cast<T*>(p), v, n);
  } else {
    T values[L];
    write<T, L>(reinterpret_cast<char*>(values), v);
    for (int i = 0; i < n; ++i) __builtin_memcpy(p + i * sizeof(T), values + i, sizeof(T));
  }
}

}  // namespace

}  // namespace fastnn::FASTNN_ISA
