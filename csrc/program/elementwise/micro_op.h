// Micro-ops: the steps of an elementwise program, each a loop over one block of values.
#pragma once

#include "program/elementwise/lanes.h"

namespace fastnn::FASTNN_ISA {

namespace {

// The memory of a block of values. With `step` 0 it is one value for all positions, repeated over one vector.
struct Slot {
  char* data;
  int64_t step;  // 0 or 1
};

constexpr int64_t kSlotBytes = 64;  // of a slot with one value: the widest vector

struct Micro;
using MicroKernel = void (*)(const Slot* slots, const Micro& micro, int64_t count);

// dst = f(a, b, c), by numbers of slots.
struct Micro {
  MicroKernel run;
  int32_t dst, a, b, c;
};

// A block that is read.
template <class T, int L>
struct Reader {
  FASTNN_INLINE explicit Reader(const Slot& slot)
      : at(slot.data), stride(slot.step * L * static_cast<int64_t>(sizeof(T))) {}
  FASTNN_INLINE Lanes<T, L> next() {
    const Lanes<T, L> v = read<T, L>(at);
    at += stride;
    return v;
  }
  FASTNN_INLINE Lanes<T, L> rest(int n) const { return stride ? read_some<T, L>(at, n) : read<T, L>(at); }

  const char* at;
  const int64_t stride;
};

// A block that is written: one value fills its slot.
template <class T, int L>
struct Writer {
  FASTNN_INLINE Writer(const Slot& slot, int64_t values)
      : at(slot.data), count(slot.step ? values : kSlotBytes / static_cast<int64_t>(sizeof(T))) {}
  FASTNN_INLINE void put(Lanes<T, L> v) {
    write<T, L>(at, v);
    at += L * sizeof(T);
  }

  char* at;
  const int64_t count;
};

// F::of takes vectors of A (B, C) and returns one of D.

template <class F, class D, class A>
void unary(const Slot* slots, const Micro& micro, int64_t count) {
  constexpr int L = lanes_of<D, A>();
  Writer<D, L> to(slots[micro.dst], count);
  Reader<A, L> a(slots[micro.a]);
  const int64_t n = to.count;
  int64_t i = 0;
  for (; i + L <= n; i += L) to.put(F::of(a.next()));
  if (const int rest = static_cast<int>(n - i)) write_some<D, L>(to.at, F::of(a.rest(rest)), rest);
}

template <class F, class D, class A, class B>
void binary(const Slot* slots, const Micro& micro, int64_t count) {
  constexpr int L = lanes_of<D, A, B>();
  Writer<D, L> to(slots[micro.dst], count);
  Reader<A, L> a(slots[micro.a]);
  Reader<B, L> b(slots[micro.b]);
  const int64_t n = to.count;
  int64_t i = 0;
  for (; i + L <= n; i += L) to.put(F::of(a.next(), b.next()));
  if (const int rest = static_cast<int>(n - i))
    write_some<D, L>(to.at, F::of(a.rest(rest), b.rest(rest)), rest);
}

template <class F, class D, class A, class B, class C>
void ternary(const Slot* slots, const Micro& micro, int64_t count) {
  constexpr int L = lanes_of<D, A, B, C>();
  Writer<D, L> to(slots[micro.dst], count);
  Reader<A, L> a(slots[micro.a]);
  Reader<B, L> b(slots[micro.b]);
  Reader<C, L> c(slots[micro.c]);
  const int64_t n = to.count;
  int64_t i = 0;
  for (; i + L <= n; i += L) to.put(F::of(a.next(), b.next(), c.next()));
  if (const int rest = static_cast<int>(n - i))
    write_some<D, L>(to.at, F::of(a.rest(rest), b.rest(rest), c.rest(rest)), rest);
}

}  // namespace

}  // namespace fastnn::FASTNN_ISA
