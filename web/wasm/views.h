// Tensors of float32, and class indices as the kernels take them.
#pragma once

#include "core/scratch.h"
#include "core/tensor_view.h"
#include "ops/cross_entropy/cross_entropy.h"

namespace fastnn {

// Kernels do not write through the views of their inputs.
inline TensorView matrix(const float* data, int64_t rows, int64_t columns) {
  return contiguous_matrix(const_cast<float*>(data), DType::f32, rows, columns);
}

inline TensorView vector(const float* data, int64_t length) {
  TensorView view;
  view.data = const_cast<float*>(data);
  view.ndim = 1;
  view.shape[0] = length;
  view.strides[0] = 1;
  return view;
}

constexpr int32_t kIgnoredLabel = -100;

// The first of the `count` labels named by `rows`, or of all with null, that is no class; else -1.
inline int64_t bad_label(const int32_t* labels, const int32_t* rows, int64_t count, int32_t classes) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t label = labels[rows ? rows[i] : i];
    if ((label < 0 || label >= classes) && label != kIgnoredLabel) return i;
  }
  return -1;
}

// The cross-entropy of rows of (M, C) by class index, but for the logits and what is written.
inline CrossEntropyArgs cross_entropy_of(int64_t m, int64_t classes, const int64_t* labels,
                                         Reduction reduction) {
  CrossEntropyArgs args = {};
  args.dtype = DType::f32;
  args.outer = m;
  args.classes = args.outer_stride = classes;
  args.inner = 1;
  args.target_dtype = DType::i64;
  args.target = labels;
  args.ignore_index = kIgnoredLabel;
  args.reduction = reduction;
  return args;
}

}  // namespace fastnn
