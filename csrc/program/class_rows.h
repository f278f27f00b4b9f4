// Rows of classes in tensors of any strides: how instructions over one dimension iterate over the others.
#pragma once

#include "core/parallel.h"
#include "core/tensor_view.h"
#include "gemm/blocking.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Elements that are worth a second thread: they take about half a nanosecond each.
constexpr int64_t kRowsGrain = 8192;

// The rows of up to kMost tensors of one shape: `along` of them, evenly spaced in every tensor, for each of
// `outer` positions. Dimensions that are consecutive in every tensor are merged.
struct ClassRows {
  static constexpr int kMost = 5;

  int count;  // of tensors
  int64_t classes, along = 1, outer = 1;
  int64_t class_stride[kMost], along_stride[kMost] = {};

  ClassRows(const TensorView* const* tensors, int tensor_count, int64_t dim) : count(tensor_count) {
    const TensorView& first = *tensors[0];
    classes = first.ndim ? first.shape[dim] : 1;
    for (int t = 0; t < count; ++t) class_stride[t] = first.ndim ? tensors[t]->strides[dim] : 0;
    for (int d = first.ndim - 1; d >= 0; --d) {
      if (d == dim || first.shape[d] == 1) continue;
      bool joins = dims_ > 0;
      for (int t = 0; t < count && joins; ++t)
        joins = tensors[t]->strides[d] == strides_[dims_ - 1][t] * shape_[dims_ - 1];
      if (joins) {
        shape_[dims_ - 1] *= first.shape[d];
        continue;
      }
      shape_[dims_] = first.shape[d];
      for (int t = 0; t < count; ++t) strides_[dims_][t] = tensors[t]->strides[d];
      ++dims_;
    }
    if (dims_ == 0) return;
    along = shape_[0];
    for (int t = 0; t < count; ++t) along_stride[t] = strides_[0][t];
    for (int d = 1; d < dims_; ++d) outer *= shape_[d];
  }

  // Where the rows of a position begin in each tensor.
  void offsets(int64_t place, int64_t* of) const {
    for (int t = 0; t < count; ++t) of[t] = 0;
    for (int d = 1; d < dims_; ++d) {
      const int64_t index = place % shape_[d];
      place /= shape_[d];
      for (int t = 0; t < count; ++t) of[t] += index * strides_[d][t];
    }
  }

  // Calls use(offsets, rows, at) for blocks of at most `most` rows that are evenly spaced and start at row
  // `at` of all, [begin, end) of them; `blocks(most)` is their number.
  int64_t blocks(int64_t most) const { return outer * ceil_div(along, most); }
  template <class Use>
  void each_block(int64_t most, int64_t begin, int64_t end, const Use& use) const {
    const int64_t in_place = ceil_div(along, most);
    int64_t start[kMost], at_row[kMost], place = -1;
    for (int64_t b = begin; b < end; ++b) {
      if (b / in_place != place) offsets(place = b / in_place, start);
      const int64_t row = b % in_place * most;
      for (int t = 0; t < count; ++t) at_row[t] = start[t] + row * along_stride[t];
      use(at_row, min(most, along - row), place * along + row);
    }
  }

 private:
  int dims_ = 0;
  int64_t shape_[TensorView::kMaxDims], strides_[TensorView::kMaxDims][kMost];
};

}  // namespace

}  // namespace fastnn::FASTNN_ISA
