// A training step of a chain of linear layers: forward, loss, backward, gradient clipping and update, as one
// parallel region that allocates nothing once its buffers have grown to the batch.
//   h_{-1} = x, or x / 255 normalised where it is given in bytes; or the rows of it that are named
//   h_l    = act_l(h_{l-1} W_l^T + b_l)                 W_l (N_l, K_l)  b_l (N_l)  h_l (M, N_l)
//   loss   = cross-entropy (ops/cross_entropy), or mean or sum of a loss of elements (losses.h), of h_{L-1}
//            and the target
//   g_l    = gradient in the input of act_l           (M, N_l)
//   dW_l   = g_l^T h_{l-1}    db_l = column sums of g_l
//   clip   = min(1, max_norm / (norm over all gradients + 1e-6)), by which all gradients are multiplied
//   update of every W_l and b_l by the optimizer (parameter_update.h)
// If dW is not stored, weights are updated one block of rows after the other, each as soon as its dW has been
// computed.
#pragma once

#include <cstdint>

#include "core/activation/activation.h"
#include "core/tensor_view.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/train_step/parameter_update.h"

namespace fastnn {

struct TrainStepLayer {
  TensorView weight;  // (N, K) contiguous
  TensorView bias;    // (N) contiguous; data is null without a bias
  Activation activation;
  TensorView output;              // (M, N)
  TensorView preactivation;       // (M, N), for an activation with from_preactivation
  TensorView gradient;            // (M, N): g
  void* weight_gradient;          // (N, K) for dW, or null if it need not be stored
  void* bias_gradient;            // (N) for db
  ParameterUpdate weight_update;  // whose grad is weight_gradient
  ParameterUpdate bias_update;    // whose grad is bias_gradient
};

enum class TrainStepLoss : int {
  cross_entropy,
  squared_error,
  absolute_error,
  smooth_l1,
  huber,
  binary_cross_entropy
};

struct TrainStepArgs {
  DType dtype;          // f32 or f64: of everything but bytes and indices
  int64_t batch;        // M
  TensorView input;     // (M, K) of dtype, any strides; or of bytes, with contiguous rows
  const int64_t* rows;  // (M), or null: the input is (N, K) with contiguous rows, and these make the batch
  TensorView images;    // (M, K) contiguous: for named rows, and for bytes as byte * byte_scale + byte_shift
  double byte_scale;
  double byte_shift;
  TrainStepLayer* layers;
  int64_t depth;
  TrainStepLoss loss_kind;
  CrossEntropyArgs cross_entropy;  // complete except for logits and gradient; its totals are counted
  const void* target;              // (M, N) contiguous; null if it is class indices
  void* gathered_target;           // null, or `target`, to be filled first with the named rows of
  const void* targets;             // a data set's, contiguous each
  int64_t targets_stride;          // bytes from one of them to the next
  bool mean;                       // else the sum, of an elementwise loss
  double threshold;                // beta of smooth L1, delta of Huber
  // For the binary cross-entropy, w and p of losses.h, each null or (N + 64 / size): those of the N classes,
  // repeated, so that a vector may start at any class.
  const void* element_weight;
  const void* positive_weight;
  void* loss;      // one element
  bool keep_grad;  // every weight_gradient is given, and holds the (clipped) gradient at the end
  bool clip;       // every weight_gradient is given
  double max_norm;
};

struct TrainStepKernels {
  // Takes a step, and another one as long as next(context), which may change batch, loss and updates in
  // `args` but no shape, returns that there is one; fewer if another number of threads should continue. Null:
  // there is none.
  void (*run)(const TrainStepArgs& args, bool (*next)(void*), void* context);
};

namespace FASTNN_ISA {
TrainStepKernels train_step_kernels();
}

}  // namespace fastnn
