#include "core/vec_math.h"

#include "core/dtype_dispatch.h"
#include "ops/vec_math/vec_math.h"

namespace fastnn::FASTNN_ISA {

namespace {

template <class Function>
void elementwise(DType dtype, const void* x, void* y, int64_t n, const Function& function) {
  dispatch_floating(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kStep = kLanes<Acc<T>>;
    const T* from = static_cast<const T*>(x);
    T* to = static_cast<T*>(y);
    int64_t i = 0;
    for (; i + kStep <= n; i += kStep) store(to + i, function(load(from + i)));
    if (const int rest = static_cast<int>(n - i))
      store_partial(to + i, function(load_partial(from + i, rest)), rest);
  });
}

void vec_exp(DType dtype, const void* x, void* y, int64_t n) {
  elementwise(dtype, x, y, n, [](auto v) { return exp(v); });
}

void vec_log(DType dtype, const void* x, void* y, int64_t n) {
  elementwise(dtype, x, y, n, [](auto v) { return log(v); });
}

}  // namespace

VecMathKernels vec_math_kernels() { return {vec_exp, vec_log}; }

}  // namespace fastnn::FASTNN_ISA
