// The kernels of single ops.
#include <cmath>

#include "layout.h"
#include "ops/adam/adam.h"
#include "ops/adam/adam_scales.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/linear/linear.h"
#include "ops/sgd/sgd.h"
#include "refusal.h"
#include "views.h"

using namespace fastnn;
using namespace fastnn::FASTNN_ISA;

Status fastnn_linear(const float* x, int32_t m, int32_t k, const float* weight, const float* bias, int32_t n,
                     int32_t relu, float* y) {
  if (m < 0 || k < 0 || n < 0)
    return refuse(kInvalid, "linear", "a size is negative: M=", m, " K=", k, " N=", n);
  const TensorView b = vector(bias, n);
  linear_kernels().forward(matrix(x, m, k), matrix(weight, n, k), bias ? &b : nullptr,
                           relu ? Activation::relu : Activation::none, matrix(y, m, n), nullptr);
  return kOk;
}

Status fastnn_cross_entropy(const float* logits, int32_t m, int32_t classes, const int32_t* labels,
                            float* loss, float* gradient) {
  if (m < 0 || classes < 1)
    return refuse(kInvalid, "cross_entropy", "logits have shape (", m, ", ", classes, ")");
  if (const int64_t bad = bad_label(labels, nullptr, m, classes); bad >= 0)
    return refuse(kOutOfRange, "cross_entropy", "target ", labels[bad], " is out of bounds");
  if (m == 0) {
    *loss = NAN;  // a mean of nothing; the kernel takes at least one row
    return kOk;
  }
  Layout layout;
  layout.take(m, sizeof(int64_t));
  ScratchBuffer wide;
  layout.grow(wide);
  int64_t* const target = static_cast<int64_t*>(wide.data());
  for (int64_t i = 0; i < m; ++i) target[i] = labels[i];
  CrossEntropyArgs args = cross_entropy_of(m, classes, target, Reduction::mean);
  args.logits = logits;
  args.loss = loss;
  args.gradient = gradient;
  cross_entropy_kernels().forward(args);
  return kOk;
}

Status fastnn_adam(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, int32_t count,
                   int32_t step, double lr, double beta1, double beta2, double eps, double weight_decay,
                   int32_t decoupled) {
  if (count < 0 || step < 1) return refuse(kInvalid, "adam", "count is ", count, ", step ", step);
  AdamOptions options = {};
  options.lr = lr;
  options.beta1 = beta1;
  options.beta2 = beta2;
  options.eps = eps;
  options.weight_decay = weight_decay;
  options.decoupled = decoupled != 0;
  AdamTensor tensor = {};
  tensor.param = param;
  tensor.grad = grad;
  tensor.state[0] = exp_avg;
  tensor.state[1] = exp_avg_sq;
  tensor.numel = count;
  const AdamScales scales = adam_scales(options, step);
  tensor.step_size = scales.step_size;
  tensor.denom_scale = scales.denom_scale;
  adam_kernels().update(&tensor, 1, options);
  return kOk;
}

Status fastnn_sgd(float* param, const float* grad, float* buffer, int32_t count, int32_t first, double lr,
                  double momentum, double dampening, double weight_decay, int32_t nesterov) {
  if (count < 0) return refuse(kInvalid, "sgd", "count is ", count);
  if (momentum != 0 && !buffer) return refuse(kInvalid, "sgd", "momentum needs a buffer");
  SgdOptions options = {};
  options.lr = lr;
  options.momentum = momentum;
  options.dampening = dampening;
  options.l2 = weight_decay;
  options.nesterov = nesterov != 0;
  SgdTensor tensor = {};
  tensor.param = param;
  tensor.grad = grad;
  tensor.state[0] = buffer;
  tensor.numel = count;
  tensor.first = first != 0;
  sgd_kernels().update(&tensor, 1, options);
  return kOk;
}
