// The checks of a linear layer's arguments, the same for every device.
#pragma once

#include "core/check.h"
#include "ops/linear/linear.h"

namespace fastnn {

inline void check_linear_forward(const TensorView& x, const TensorView& weight, const TensorView* bias,
                                 const TensorView& y, const TensorView* z) {
  check_floating("linear", "input", x);
  check_ndim("linear", "input", x, 2);
  check_ndim("linear", "weight", weight, 2);
  check_dtype("linear", "weight", weight, x.dtype);
  check(x.shape[1] == weight.shape[1], "linear: input has K=", x.shape[1], ", weight expects ",
        weight.shape[1]);
  if (bias) check_vector("linear", "bias", *bias, x.dtype, weight.shape[0]);
  check_matrix("linear", "output", y, x.dtype, x.shape[0], weight.shape[0]);
  check_contiguous("linear", "output", y);
  if (z) {
    check_matrix("linear", "preactivation", *z, x.dtype, x.shape[0], weight.shape[0]);
    check_contiguous("linear", "preactivation", *z);
  }
}

// `saved` as in LinearGradients.
inline void check_linear_saved(const TensorView& dy, const TensorView* saved, Activation activation) {
  check_floating("linear", "grad_output", dy);
  check_ndim("linear", "grad_output", dy, 2);
  if (activation == Activation::none) return;
  check(saved, "linear: the gradient of an activation needs its output or input");
  check_matrix("linear", from_preactivation(activation) ? "preactivation" : "output", *saved, dy.dtype,
               dy.shape[0], dy.shape[1]);
}

inline void check_linear_bias_gradient(const TensorView& dy, const TensorView* db) {
  if (!db) return;
  check_vector("linear", "grad_bias", *db, dy.dtype, dy.shape[1]);
  check_contiguous("linear", "grad_bias", *db);
}

inline void check_linear_backward(const LinearGradients& args) {
  check_linear_saved(args.dy, args.saved, args.activation);
  const int64_t m = args.dy.shape[0], n = args.dy.shape[1];
  const DType dtype = args.dy.dtype;
  if (args.dx) {
    check(args.weight, "linear: grad_input needs weight");
    check_matrix("linear", "weight", *args.weight, dtype, n, args.weight->shape[1]);
    check_matrix("linear", "grad_input", *args.dx, dtype, m, args.weight->shape[1]);
    check_contiguous("linear", "grad_input", *args.dx);
    if (args.below_activation != Activation::none) {
      check(args.below_saved, "linear: the gradient of the activation below needs its output or input");
      check_matrix("linear", "what the layer below saved", *args.below_saved, dtype, m,
                   args.weight->shape[1]);
    }
  }
  if (args.dw) {
    check(args.x, "linear: grad_weight needs input");
    check_matrix("linear", "input", *args.x, dtype, m, args.x->shape[1]);
    check_matrix("linear", "grad_weight", *args.dw, dtype, n, args.x->shape[1]);
    check_contiguous("linear", "grad_weight", *args.dw);
  }
  check_linear_bias_gradient(args.dy, args.db);
}

}  // namespace fastnn
