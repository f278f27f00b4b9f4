// The updates of a layer's parameters.
#pragma once

#include "core/parallel.h"
#include "gemm/gemm.h"
#include "gemm/store_sums.h"
#include "gemm/threads.h"
#include "ops/optim/multi_tensor_cpu.h"
#include "ops/train_step/train_step.h"

namespace fastnn::FASTNN_ISA {

namespace {

inline AdagradKernels kernels_of(const AdagradTensor&) { return adagrad_kernels(); }
inline AdamKernels kernels_of(const AdamTensor&) { return adam_kernels(); }
inline RmspropKernels kernels_of(const RmspropTensor&) { return rmsprop_kernels(); }
inline SgdKernels kernels_of(const SgdTensor&) { return sgd_kernels(); }

// Bytes of dW computed before its weights are updated: they stay in L2 between the two, and weights and state
// are accessed in long streams, which the prefetcher detects. Updating each tile of the product from
// registers, with its short pieces of many rows, took 3 times as long (Cascade Lake, 784-512-10).
constexpr int64_t kGradientBytes = int64_t{256} << 10;
// The same for a batch so large that x is packed for the product: once for each block, so these are larger.
constexpr int64_t kLargeBatch = 128;
constexpr int64_t kLargeGradientBytes = int64_t{4} << 20;

// The rows [begin, end) of the weights and of their optimizer data.
template <class T, class Tensor>
Tensor rows_of(const Tensor& t, int64_t begin, int64_t end, int64_t columns, T* gradient) {
  Tensor part = t;
  part.param = static_cast<T*>(t.param) + begin * columns;
  part.grad = gradient;
  for (void*& state : part.state)
    if (state) state = static_cast<T*>(state) + begin * columns;
  part.numel = (end - begin) * columns;
  return part;
}

// dW = g^T x, and the update of W with it, one block of rows after the other. How the rows are split changes
// no value (gemm.h).
template <class T>
void update_weights(const TrainStepLayer& layer, const Operand<T>& g, const Operand<T>& x, int64_t m) {
  const int64_t n = layer.weight.shape[0], k = layer.weight.shape[1];
  const int64_t threads = worthwhile_threads(n * k * m);
  const int64_t bytes = m > kLargeBatch ? kLargeGradientBytes : kGradientBytes;
  int64_t most = bytes / (k * static_cast<int64_t>(sizeof(T))) / kTileRows * kTileRows;
  if (most < kTileRows) most = kTileRows;
  const EvenParts blocks(n, ceil_div(ceil_div(n, most), threads) * threads);
  parallel_for(blocks.count, ceil_div(blocks.count, threads), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = blocks.begin(block), end = blocks.begin(block + 1);
      T* const dw = static_cast<T*>(thread_scratch(Scratch::gradient, (end - begin) * k * sizeof(T)));
      const StoreSums<T> store{dw, k};
      gemm<T>(end - begin, k, m, g.at(0, begin).transposed(), x, epilogue_of<T>(store));
      visit_update(layer.weight_update, [&](const auto& t, auto options) {
        options.grad_scale = 1;
        const auto part = rows_of(t, begin, end, k, dw);
        kernels_of(t).update_range(part, options, 0, part.numel);
      });
    }
  });
}

// dW = g^T x to where it is stored.
template <class T>
void store_weight_gradient(const TrainStepLayer& layer, const Operand<T>& g, const Operand<T>& x, int64_t m) {
  const int64_t n = layer.weight.shape[0], k = layer.weight.shape[1];
  const StoreSums<T> store{static_cast<T*>(layer.weight_gradient), k};
  gemm<T>(n, k, m, g.transposed(), x, epilogue_of<T>(store));
}

// Updates a parameter with its stored gradient, multiplied by grad_scale.
inline void update_parameter(const ParameterUpdate& update, double grad_scale) {
  visit_update(update, [&](const auto& t, auto options) {
    options.grad_scale = grad_scale;
    parallel_for(ceil_div(t.numel, kChunk), kElementsPerThread / kChunk, [&](int64_t first, int64_t last) {
      kernels_of(t).update_range(t, options, first * kChunk, min(last * kChunk, t.numel));
    });
  });
}

}  // namespace

}  // namespace fastnn::FASTNN_ISA
