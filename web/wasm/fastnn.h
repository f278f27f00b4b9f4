// What JavaScript calls: plain C functions on addresses in the module's memory, all of float32.
//
// A function of type Status checks its arguments but for the addresses themselves, and writes nothing where
// it refuses; fastnn_message() then says why. A call for which memory ends throws in JavaScript (memory.cpp).
// Matrices are contiguous, rows first. Class indices are int32; -100 leaves a row out, as in torch. Nothing
// may overlap but where it says so.
#pragma once

#include <cstdint>

#define FASTNN_EXPORT(name) extern "C" __attribute__((export_name(#name)))

enum Status : int32_t { kOk, kInvalid, kOutOfRange };

// Why the last call was refused, as text that ends with a zero byte.
FASTNN_EXPORT(fastnn_message) const char* fastnn_message();

// Memory on a cache line of its own, and its return; null may be returned too.
FASTNN_EXPORT(fastnn_allocate) void* fastnn_allocate(uint32_t bytes);
FASTNN_EXPORT(fastnn_free) void fastnn_free(void* data);

// ---- single ops ----

// y = act(x W^T + b)   x (M, K)  W (N, K)  b (N) or null  y (M, N); `relu`: 0 or 1
FASTNN_EXPORT(fastnn_linear)
Status fastnn_linear(const float* x, int32_t m, int32_t k, const float* weight, const float* bias, int32_t n,
                     int32_t relu, float* y);

// loss (1) = mean softmax cross-entropy of logits (M, C), NaN where no row counts; gradient (M, C) or null
FASTNN_EXPORT(fastnn_cross_entropy)
Status fastnn_cross_entropy(const float* logits, int32_t m, int32_t classes, const int32_t* labels,
                            float* loss, float* gradient);

// One step of Adam, or with `decoupled` AdamW, on `count` values; `step` counts from 1.
FASTNN_EXPORT(fastnn_adam)
Status fastnn_adam(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, int32_t count,
                   int32_t step, double lr, double beta1, double beta2, double eps, double weight_decay,
                   int32_t decoupled);

// One step of SGD. `buffer` holds the momentum, nothing yet at the `first` step; null without momentum.
FASTNN_EXPORT(fastnn_sgd)
Status fastnn_sgd(float* param, const float* grad, float* buffer, int32_t count, int32_t first, double lr,
                  double momentum, double dampening, double weight_decay, int32_t nesterov);

// ---- a multi-layer perceptron: linear layers with relu between them ----

struct Mlp;

enum MlpLoss : int32_t { kCrossEntropy, kMeanSquaredError };

// Rows of features as a data set has them: float32, or bytes as byte * scale + shift.
struct MlpRows {
  const void* data;  // (rows, sizes[0])
  int32_t rows;
  int32_t bytes;  // 0 or 1
  float scale, shift;
};

// `sizes` (count): features of the input, of each hidden layer and of the output; parameters are 0. Null
// where it is refused.
FASTNN_EXPORT(fastnn_mlp_new) Mlp* fastnn_mlp_new(const int32_t* sizes, int32_t count, int32_t loss);
FASTNN_EXPORT(fastnn_mlp_delete) void fastnn_mlp_delete(Mlp* mlp);

// Addresses that hold as long as the Mlp: W (sizes[layer + 1], sizes[layer]) and b (sizes[layer + 1]).
FASTNN_EXPORT(fastnn_mlp_weight) float* fastnn_mlp_weight(Mlp* mlp, int32_t layer);
FASTNN_EXPORT(fastnn_mlp_bias) float* fastnn_mlp_bias(Mlp* mlp, int32_t layer);

// Choose the optimizer, which begins anew: its state becomes 0.
FASTNN_EXPORT(fastnn_mlp_use_adam)
Status fastnn_mlp_use_adam(Mlp* mlp, double lr, double beta1, double beta2, double eps, double weight_decay,
                           int32_t decoupled);
FASTNN_EXPORT(fastnn_mlp_use_sgd)
Status fastnn_mlp_use_sgd(Mlp* mlp, double lr, double momentum, double dampening, double weight_decay,
                          int32_t nesterov);
// Goes on with another learning rate.
FASTNN_EXPORT(fastnn_mlp_set_lr) Status fastnn_mlp_set_lr(Mlp* mlp, double lr);

// Takes a training step on each `batch` of the `count` rows of the data set that are named, in order; the
// last may be smaller. target: class indices (data->rows), or values (data->rows, N). losses: one a step.
FASTNN_EXPORT(fastnn_mlp_train)
Status fastnn_mlp_train(Mlp* mlp, const MlpRows* data, const void* target, const int32_t* rows, int32_t count,
                        int32_t batch, float* losses);

// y (data->rows, N)
FASTNN_EXPORT(fastnn_mlp_predict) Status fastnn_mlp_predict(Mlp* mlp, const MlpRows* data, float* y);

// result[0]: mean loss, NaN where no row counts; result[1]: share of the rows that count whose largest output
// is that of their class; NaN without classes.
FASTNN_EXPORT(fastnn_mlp_evaluate)
Status fastnn_mlp_evaluate(Mlp* mlp, const MlpRows* data, const void* target, double* result);
