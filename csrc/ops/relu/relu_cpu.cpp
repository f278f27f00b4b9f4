#include "ops/relu/relu.h"

#include "core/dtype_dispatch.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "ops/relu/relu_rule.h"

namespace fastnn::FASTNN_ISA {

namespace {

// One thread streams about 8 elements per nanosecond and a parallel region costs about half a microsecond,
// so ranges below this size are not worth a second thread.
constexpr int64_t kGrain = 32768;

template <class T>
void forward(const T* x, T* y, int64_t begin, int64_t end) {
  constexpr int kStep = kLanes<Acc<T>>;
  int64_t i = begin;
  for (; i + kStep <= end; i += kStep) store(y + i, relu_value(load(x + i)));
  if (const int rest = static_cast<int>(end - i))
    store_partial(y + i, relu_value(load_partial(x + i, rest)), rest);
}

template <class T>
void backward(const T* dy, const T* y, T* dx, int64_t begin, int64_t end) {
  constexpr int kStep = kLanes<Acc<T>>;
  int64_t i = begin;
  for (; i + kStep <= end; i += kStep) store(dx + i, relu_gradient(load(dy + i), load(y + i)));
  if (const int rest = static_cast<int>(end - i))
    store_partial(dx + i, relu_gradient(load_partial(dy + i, rest), load_partial(y + i, rest)), rest);
}

void relu_forward(DType dtype, const void* x, void* y, int64_t n) {
  dispatch_floating(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
      forward(static_cast<const T*>(x), static_cast<T*>(y), begin, end);
    });
  });
}

void relu_backward(DType dtype, const void* dy, const void* y, void* dx, int64_t n) {
  dispatch_floating(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
      backward(static_cast<const T*>(dy), static_cast<const T*>(y), static_cast<T*>(dx), begin, end);
    });
  });
}

}  // namespace

ReluKernels relu_kernels() { return {relu_forward, relu_backward}; }

}  // namespace fastnn::FASTNN_ISA
