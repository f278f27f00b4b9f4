// An epilogue with an activation, or the gradient of one, in three steps: the part before it, the activation
// of the whole tile at once, and the part after it.
#pragma once

#include "core/activation/apply.h"
#include "gemm/epilogue.h"

namespace fastnn::FASTNN_ISA {

namespace detail {

// Calls use(row, column, place in a compact copy, lanes) for the vectors of a piece of a tile.
template <class A, class Use>
FASTNN_INLINE void each_vector(int64_t rows, int64_t columns, const Use& use) {
  constexpr int64_t kL = kLanes<A>;
  int64_t at = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; c += kL, at += kL) use(r, c, at, static_cast<int>(min(kL, columns - c)));
}

template <class T, class Steps>
void store_activated(const void* self, int64_t i, int64_t j, int64_t rows, int64_t columns,
                     const Acc<T>* values, int64_t stride) {
  using A = Acc<T>;
  constexpr int64_t kPiece = kTileColumns<A>;
  const Steps steps = *static_cast<const Steps*>(self);
  alignas(64) A z[kMostEpilogueRows * kPiece];
  alignas(64) A saved[Steps::kGradient ? kMostEpilogueRows * kPiece : 1];
  for (int64_t left = 0; left < columns; left += kPiece) {
    const int64_t width = min(kPiece, columns - left), count = rows * ceil_div(width, kLanes<A>) * kLanes<A>;
    each_vector<A>(rows, width, [&](int64_t r, int64_t c, int64_t at, int lanes) {
      // The memory beyond the columns is arbitrary and may hold subnormals, each of which traps into
      // microcode at every step of an activation: use 0 instead.
      const Vec<A> sums = load_lanes(values + r * stride + left + c, lanes);
      store(z + at, steps.before(i + r, j + left + c, sums, lanes));
      if constexpr (Steps::kGradient) store(saved + at, steps.saved.values(i + r, j + left + c, lanes));
    });
    if constexpr (Steps::kGradient)
      apply_gradient(steps.activation, z, saved, count);
    else
      apply_activation(steps.activation, z, count);
    each_vector<A>(rows, width, [&](int64_t r, int64_t c, int64_t at, int lanes) {
      steps.after(i + r, j + left + c, load(z + at), lanes);
    });
  }
}

}  // namespace detail

// The epilogue made of an object that outlives it, with before(i, j, v, n), which returns the input of
// `activation` for the n <= kLanes sums of row i from column j on; after(i, j, v, n), which takes its output;
// and with kGradient, if it is the gradient of `activation`, the Operand `saved`.
template <class T, class Steps>
Epilogue<T> activated_epilogue(const Steps& steps) {
  return {nullptr, &steps, detail::store_activated<T, Steps>};
}

}  // namespace fastnn::FASTNN_ISA
