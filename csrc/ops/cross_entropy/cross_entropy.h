// Softmax cross-entropy with its gradient in one pass.
//
// For row x with C logits, lse = log sum_k exp(x_k), class weights w (1 if none are given), smoothing e:
//   class index y          loss = (1 - e) w_y (lse - x_y) + e/C sum_k w_k (lse - x_k)
//   class probabilities t  loss = sum_k q_k (lse - x_k),  q_k = w_k ((1 - e) t_k + e/C)
//   z-loss                 z lse^2 is added to either
// Rows whose index is `ignore_index` have loss 0 and gradient 0. Reduction `mean` divides the loss by the sum
// of w_y over the rows that count (class probabilities: by the number of rows) and the z-loss by the number
// of rows that count.
//   gradient of a row      softmax(x)_k (sum_k q_k + 2 z lse) - q_k,
//                          q_k = e/C w_k + [k = y] (1 - e) w_y for a class index
//
// Rows are addressed as (outer, classes, inner): inner is 1 for (N, C), and the class dimension then has
// stride 1 and rows any stride; otherwise the logits are contiguous. Everything else is contiguous.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastnn {

enum class Reduction : int { none, mean, sum };

// What `mean` divides by, and whether the indices are valid.
struct CrossEntropyTotals {
  int64_t bad_row;  // first row whose index is out of range, or -1
  int64_t rows;     // that count
  double weight;    // sum of w_y over them
};

struct CrossEntropyArgs {
  DType dtype;  // of logits, weight, probabilities, loss and gradient
  int64_t outer, classes, inner;
  const void* logits;    // (outer, classes, inner)
  int64_t outer_stride;  // of the logits, in elements
  DType
      target_dtype;  // i64 or u8: class indices (outer, inner); `dtype`: probabilities, shaped as the logits
  const void* target;
  const void* weight;  // (classes), or null
  int64_t ignore_index;
  Reduction reduction;
  double label_smoothing;
  double z_loss;
  // Of the batch that contains these rows, whose indices have been checked; null: of these rows.
  const CrossEntropyTotals* totals;
  void* loss;  // (outer, inner) for Reduction::none, else one element, or null
  // (outer, classes, inner), or null if none is wanted; it may be the logits if they are contiguous.
  void* gradient;
};

struct CrossEntropyResult {
  int64_t bad_row;  // first row whose index is out of range (nothing was written), or -1
  // What the gradient must still be multiplied by: float16 gradients are written before the division by the
  // number of rows, which would flush the small ones to zero.
  double gradient_scale;
  double loss;  // the sum or mean, not rounded to `dtype`
};

struct CrossEntropyKernels {
  CrossEntropyTotals (*count)(const CrossEntropyArgs& args);
  CrossEntropyResult (*forward)(const CrossEntropyArgs& args);
  // gradient (outer, classes, inner) *= scale * dy, where dy has one element per row, or only one if
  // `scalar`.
  void (*scale_gradient)(const CrossEntropyArgs& args, const void* dy, bool scalar, double scale);
};

namespace FASTNN_ISA {
CrossEntropyKernels cross_entropy_kernels();
}

}  // namespace fastnn
