// The updates of a layer's parameters.
#pragma once

#include <type_traits>

#include "core/parallel.h"
#include "gemm/gemm.h"
#include "ops/adam/adam_rule.h"
#include "ops/optim/multi_tensor_cpu.h"
#include "ops/sgd/sgd_rule.h"
#include "ops/train_step/train_step.h"

namespace fastnn::FASTNN_ISA {

namespace {

// The end of the product dW: updates the weights of a row segment.
template <class T, class Rule>
struct UpdateWeights {
  const OptimizerTensor& weight;
  const Rule& rule;
  int64_t columns;

  T* direct(int64_t, int64_t) const { return nullptr; }
  FASTNN_INLINE void operator()(int64_t i, int64_t j, Vec<T> dw, int lanes) const {
    update_vector<T>(weight, i * columns + j, lanes, dw, rule);
  }
};

// The end of the product dW where it is stored.
template <class T>
struct StoreGradient {
  T* dw;  // (N, K)
  int64_t columns;

  T* direct(int64_t i, int64_t j) const { return dw + i * columns + j; }
  FASTNN_INLINE void operator()(int64_t i, int64_t j, Vec<T> v, int lanes) const {
    store_lanes(dw + i * columns + j, v, lanes);
  }
};

// Calls visit(tensor, rule), the gradient being multiplied with grad_scale first.
template <class T, class Visit>
void with_rule(const ParameterUpdate& update, double grad_scale, const Visit& visit) {
  if (update.adam_options) {
    AdamOptions options = *update.adam_options;
    options.grad_scale = grad_scale;
    with_adam_rule<T>(update.adam, options, [&](const auto& rule) { visit(update.adam, rule); });
  } else {
    SgdOptions options = *update.sgd_options;
    options.grad_scale = grad_scale;
    with_sgd_rule<T>(update.sgd, options, [&](const auto& rule) { visit(update.sgd, rule); });
  }
}

// dW = g^T x into the updates of the weights, or to where it is stored.
template <class T>
void weight_gradient(const TrainStepLayer& layer, const Operand<T>& g, const Operand<T>& x, int64_t m) {
  const int64_t n = layer.weight.shape[0], k = layer.weight.shape[1];
  if (T* const dw = static_cast<T*>(layer.weight_gradient)) {
    gemm<T>(n, k, m, g.transposed(), x, StoreGradient<T>{dw, k});
    return;
  }
  with_rule<T>(layer.weight_update, 1, [&](const OptimizerTensor& weight, const auto& rule) {
    using Rule = std::remove_cv_t<std::remove_reference_t<decltype(rule)>>;
    gemm<T>(n, k, m, g.transposed(), x, UpdateWeights<T, Rule>{weight, rule, k});
  });
}

// Updates a parameter with its stored gradient.
template <class T>
void update_parameter(const ParameterUpdate& update, double grad_scale) {
  with_rule<T>(update, grad_scale, [&](const OptimizerTensor& t, const auto& rule) {
    parallel_for(ceil_div(t.numel, kChunk), kElementsPerThread / kChunk, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk)
        update_range<T>(t, chunk * kChunk, min((chunk + 1) * kChunk, t.numel), rule);
    });
  });
}

}  // namespace

}  // namespace fastnn::FASTNN_ISA
