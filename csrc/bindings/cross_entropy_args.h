// Reading and checking the arguments of cross-entropy, the same for every device.
#pragma once

#include <stdexcept>

#include "bindings/memory_ranges.h"
#include "core/check.h"
#include "ops/cross_entropy/cross_entropy.h"

namespace fastnn::cross_entropy_args {

inline constexpr const char* kOp = "cross_entropy";

// Numbered as in python/fastnn/ops/cross_entropy.py.
inline Reduction read_reduction(const char* op, int value) {
  check<std::invalid_argument>(value >= 0 && value <= static_cast<int>(Reduction::sum), op,
                               ": reduction must be 0, 1 or 2, got ", value);
  return static_cast<Reduction>(value);
}

// (C), (N, C) or (N, C, d1, ...) as (outer, classes, inner).
inline void read_logits(const TensorView& x, CrossEntropyArgs& args) {
  check_floating(kOp, "input", x);
  check(x.ndim >= 1, kOp, ": input has shape (), expected (C), (N, C) or (N, C, d1, ...)");
  check(x.numel() > 0, kOp, ": input of shape ", shape_string(x), " has no elements");
  args.dtype = x.dtype;
  args.logits = x.data;
  args.outer = x.ndim == 1 ? 1 : x.shape[0];
  args.classes = x.shape[x.ndim == 1 ? 0 : 1];
  args.inner = 1;
  for (int d = 2; d < x.ndim; ++d) args.inner *= x.shape[d];
  args.outer_stride = args.classes * args.inner;
  if (x.ndim == 2) {
    check(x.strides[1] == 1 || args.classes == 1, kOp, ": the classes of input must have stride 1");
    args.outer_stride = x.strides[0];
  } else {
    check_contiguous(kOp, "input", x);
  }
}

// Shape of the class indices: the input's without its class dimension.
inline TensorView without_classes(const TensorView& x) {
  TensorView t;
  for (int d = 0; d < x.ndim; ++d)
    if (d != (x.ndim == 1 ? 0 : 1)) t.shape[t.ndim++] = x.shape[d];
  return t;
}

inline void read_target(const TensorView& target, const TensorView& x, CrossEntropyArgs& args) {
  args.target = target.data;
  args.target_dtype = target.dtype;
  if (target.dtype == x.dtype) {
    check_same_shape(kOp, "target of class probabilities", target, x);
  } else {
    check(target.dtype == DType::i64 || target.dtype == DType::u8, kOp, ": target has dtype ",
          dtype_name(target.dtype), ", expected int64, uint8 or that of input, ", dtype_name(x.dtype));
    const TensorView expected = without_classes(x);
    if (target.ndim > 0 && expected.ndim > 0)
      check<std::invalid_argument>(target.shape[0] == expected.shape[0], kOp, ": target of shape ",
                                   shape_string(target), " has batch size ", target.shape[0], ", expected ",
                                   expected.shape[0], " for input of shape ", shape_string(x));
    check_same_shape(kOp, "target of class indices", target, expected);
  }
  check_contiguous(kOp, "target", target);
}

inline void read_weight(const TensorView& weight, const TensorView& x, CrossEntropyArgs& args) {
  check_dtype(kOp, "weight", weight, x.dtype);
  check(weight.ndim == 1 && weight.shape[0] == args.classes, kOp, ": weight has shape ", shape_string(weight),
        ", expected (", args.classes, ",) for ", args.classes, " classes");
  check_contiguous(kOp, "weight", weight);
  args.weight = weight.data;
}

inline CrossEntropyArgs read_forward(const TensorView& x, const TensorView& target, const TensorView* weight,
                                     const TensorView& loss, const TensorView* gradient, int64_t ignore_index,
                                     int reduction, double label_smoothing, double z_loss) {
  CrossEntropyArgs args = {};
  read_logits(x, args);
  read_target(target, x, args);
  if (weight) read_weight(*weight, x, args);
  args.ignore_index = ignore_index;
  args.reduction = read_reduction(kOp, reduction);
  args.label_smoothing = label_smoothing;
  args.z_loss = z_loss;
  check_dtype(kOp, "loss", loss, x.dtype);
  check_same_shape(kOp, "loss", loss, args.reduction == Reduction::none ? without_classes(x) : TensorView{});
  check_contiguous(kOp, "loss", loss);
  args.loss = loss.data;
  if (gradient) {
    check_dtype(kOp, "gradient", *gradient, x.dtype);
    check_same_shape(kOp, "gradient", *gradient, x);
    check_contiguous(kOp, "gradient", *gradient);
    args.gradient = gradient->data;
  }
  check_apart(kOp, {&loss, gradient}, {&target, weight});
  check_apart(kOp, {&loss}, {&x});
  // The gradient may overwrite the logits.
  if (gradient && !(gradient->data == x.data && x.is_contiguous())) check_apart(kOp, {gradient}, {&x});
  return args;
}

// Fills `args` with what scaling a gradient needs; whether `dy` has one element for all rows.
inline bool read_scaling(const TensorView& gradient, const TensorView& dy, CrossEntropyArgs& args) {
  read_logits(gradient, args);
  check_contiguous(kOp, "gradient", gradient);
  check_dtype(kOp, "grad_output", dy, gradient.dtype);
  check_contiguous(kOp, "grad_output", dy);
  const bool scalar = dy.numel() == 1;
  if (!scalar) check_same_shape(kOp, "grad_output", dy, without_classes(gradient));
  check_apart(kOp, {&gradient}, {&dy});
  args.gradient = gradient.data;
  return scalar;
}

}  // namespace fastnn::cross_entropy_args
