// Loops over the elements of views of one shape, for layouts without a faster path.
#pragma once

#include "core/simd.h"
#include "core/tensor_view.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Offsets in elements into each of `kViews` views while a loop runs over their shape.
template <int kViews>
struct Offsets {
  int64_t of[kViews] = {};
};

// A nest of loops, the outermost first. It runs over the elements in the order in which its loops were added.
template <int kViews>
struct Nest {
  int dims = 0;
  int64_t size[TensorView::kMaxDims];
  Offsets<kViews> step[TensorView::kMaxDims];

  int64_t numel() const {
    int64_t n = 1;
    for (int d = 0; d < dims; ++d) n *= size[d];
    return n;
  }

  // Adds a loop within the others; one that continues where the last one ends becomes part of it.
  void add(int64_t n, const Offsets<kViews>& by) {
    if (n == 1) return;
    if (dims > 0) {
      bool goes_on = true;
      for (int v = 0; v < kViews; ++v) goes_on = goes_on && step[dims - 1].of[v] == n * by.of[v];
      if (goes_on) {
        size[dims - 1] *= n;
        step[dims - 1] = by;
        return;
      }
    }
    size[dims] = n;
    step[dims++] = by;
  }

  int64_t inner_size() const { return dims > 0 ? size[dims - 1] : 1; }
  int64_t inner_step(int view) const { return step[dims > 0 ? dims - 1 : 0].of[view]; }
};

// The loops over views of one shape, those of the first view with the longest strides outermost: its elements
// are then met in the order of their addresses.
template <int kViews>
FASTNN_INLINE Nest<kViews> nest_of(const TensorView* const (&views)[kViews]) {
  const TensorView& first = *views[0];
  int order[TensorView::kMaxDims];
  for (int d = 0; d < first.ndim; ++d) {
    int at = d;
    for (; at > 0 && first.strides[order[at - 1]] < first.strides[d]; --at) order[at] = order[at - 1];
    order[at] = d;
  }
  Nest<kViews> nest;
  for (int k = 0; k < first.ndim; ++k) {
    Offsets<kViews> by;
    for (int v = 0; v < kViews; ++v) by.of[v] = views[v]->strides[order[k]];
    nest.add(first.shape[order[k]], by);
  }
  return nest;
}

// Calls row(offsets, n) for runs of n elements along the innermost loop that together are the elements
// [begin, end) of the nest.
template <int kViews, class Row>
FASTNN_INLINE void for_rows(const Nest<kViews>& nest, int64_t begin, int64_t end, const Row& row) {
  const int last = nest.dims - 1;
  Offsets<kViews> at;
  if (last < 0) {
    if (begin < end) row(at, int64_t{1});
    return;
  }
  int64_t index[TensorView::kMaxDims] = {};
  if (int64_t rest = begin)
    for (int d = last; d >= 0; --d) {
      index[d] = rest % nest.size[d];
      rest /= nest.size[d];
      for (int v = 0; v < kViews; ++v) at.of[v] += index[d] * nest.step[d].of[v];
    }
  while (begin < end) {
    const int64_t left = nest.size[last] - index[last], n = left < end - begin ? left : end - begin;
    row(at, n);
    begin += n;
    if (begin >= end) return;
    for (int v = 0; v < kViews; ++v) at.of[v] -= index[last] * nest.step[last].of[v];
    index[last] = 0;
    for (int d = last - 1; d >= 0; --d) {
      for (int v = 0; v < kViews; ++v) at.of[v] += nest.step[d].of[v];
      if (++index[d] < nest.size[d]) break;
      for (int v = 0; v < kViews; ++v) at.of[v] -= nest.size[d] * nest.step[d].of[v];
      index[d] = 0;
    }
  }
}

// Calls body with a tag of a type with the size of a dtype's elements, to move them.
template <class T>
struct MovedAs {
  using type = T;
};
template <class Body>
FASTNN_INLINE void dispatch_size(DType dtype, const Body& body) {
  switch (dtype_size(dtype)) {
    case 8:
      return body(MovedAs<double>{});
    case 4:
      return body(MovedAs<float>{});
    case 2:
      return body(MovedAs<uint16_t>{});
    default:
      return body(MovedAs<uint8_t>{});
  }
}

// y[k ys] = x[k xs] for k < n. Floats are only moved, never computed with, so that all bits are preserved.
template <class T>
FASTNN_INLINE void copy_row(T* y, const T* x, int64_t n, int64_t ys, int64_t xs) {
  if (ys == 1 && xs == 1) {
    if constexpr (sizeof(T) >= 4) {
      // Most rows are short: calling memcpy would take longer than the copy itself.
      constexpr int kStep = kLanes<T>;
      if (n <= 16 * kStep) {
        int64_t k = 0;
        for (; k + kStep <= n; k += kStep) store(y + k, load(x + k));
        if (k < n)
          store_partial(y + k, load_partial(x + k, static_cast<int>(n - k)), static_cast<int>(n - k));
        return;
      }
    }
    __builtin_memcpy(y, x, static_cast<size_t>(n) * sizeof(T));
  } else {
    for (int64_t k = 0; k < n; ++k) y[k * ys] = x[k * xs];
  }
}

}  // namespace

}  // namespace fastnn::FASTNN_ISA
