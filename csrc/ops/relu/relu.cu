#include "core/cuda/elementwise.cuh"
#include "core/dtype_dispatch.h"
#include "ops/relu/relu_cuda.h"
#include "ops/relu/relu_rule.h"

namespace fastnn::cuda {

namespace {

struct Forward {
  template <class A>
  __device__ __forceinline__ A operator()(A x) const {
    return relu_value(x);
  }
};

struct Backward {
  template <class A>
  __device__ __forceinline__ A operator()(A dy, A y) const {
    return relu_gradient(dy, y);
  }
};

}  // namespace

void relu_forward(DType dtype, const void* x, void* y, int64_t n, cudaStream_t stream) {
  dispatch_floating(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    map("relu", Inputs<T, 1>{static_cast<const T*>(x)}, static_cast<T*>(y), n, Forward{}, stream);
  });
}

void relu_backward(DType dtype, const void* dy, const void* y, void* dx, int64_t n, cudaStream_t stream) {
  dispatch_floating(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Inputs<T, 2> in = {static_cast<const T*>(dy), static_cast<const T*>(y)};
    map("relu", in, static_cast<T*>(dx), n, Backward{}, stream);
  });
}

}  // namespace fastnn::cuda
