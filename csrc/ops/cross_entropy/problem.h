// What the rows of one call share, and how each reports its loss.
#pragma once

#include "core/simd.h"
#include "ops/cross_entropy/cross_entropy.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Data shared by all rows of one call.
template <class T>
struct Problem {
  using A = Acc<T>;
  const CrossEntropyArgs& args;
  const T* probabilities;  // null for class indices
  bool dense;              // rows have terms in every class: probabilities or smoothed indices
  A keep = 1, smooth = 0;  // 1 - e and e/C of the label smoothing
  A dense_weight = 0;      // sum_k w_k
  A gradient_scale = 1;    // of every gradient, with respect to the row's own loss
  A z_scale = 0;           // 2 z over the rows that count

  A weight_of(int64_t k) const { return args.weight ? to_acc(static_cast<const T*>(args.weight)[k]) : A(1); }

  bool ignored(int64_t row) const { return !probabilities && index_of(row) == args.ignore_index; }

  int64_t index_of(int64_t row) const {
    return args.target_dtype == DType::u8 ? int64_t{static_cast<const uint8_t*>(args.target)[row]}
                                          : static_cast<const int64_t*>(args.target)[row];
  }
};

struct Sums {
  double loss = 0, square = 0;  // of the rows, and of their lse^2
};

// Writes the loss of a row, or adds it to the caller's reduction.
template <class T>
FASTNN_INLINE void finish_row(const Problem<T>& p, int64_t row, double loss, double lse, Sums& sums) {
  if (p.args.reduction == Reduction::none) {
    static_cast<T*>(p.args.loss)[row] = from_acc<T>(static_cast<Acc<T>>(loss + p.args.z_loss * lse * lse));
  } else {
    sums.loss += loss;
    sums.square += lse * lse;
  }
}

}  // namespace

}  // namespace fastnn::FASTNN_ISA
