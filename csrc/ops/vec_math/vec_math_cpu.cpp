#include "ops/vec_math/vec_math.h"

#include "core/dtype_dispatch.h"
#include "core/vec_special.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Function::of takes a vector and gives one.
template <class Function>
void elementwise(DType dtype, const void* x, void* y, int64_t n) {
  dispatch_floating(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kStep = kLanes<Acc<T>>;
    const T* from = static_cast<const T*>(x);
    T* to = static_cast<T*>(y);
    int64_t i = 0;
    for (; i + kStep <= n; i += kStep) store(to + i, Function::of(load(from + i)));
    if (const int rest = static_cast<int>(n - i))
      store_partial(to + i, Function::of(load_partial(from + i, rest)), rest);
  });
}

struct Exp {
  template <class V>
  FASTNN_INLINE static V of(V x) {
    return exp(x);
  }
};
struct Log {
  template <class V>
  FASTNN_INLINE static V of(V x) {
    return log(x);
  }
};
struct Log1p {
  template <class V>
  FASTNN_INLINE static V of(V x) {
    return log1p(x);
  }
};
struct Sigmoid {
  template <class V>
  FASTNN_INLINE static V of(V x) {
    return sigmoid(x);
  }
};
struct Tanh {
  template <class V>
  FASTNN_INLINE static V of(V x) {
    return tanh(x);
  }
};
struct NormalCdf {
  template <class V>
  FASTNN_INLINE static V of(V x) {
    return normal_cdf(x);
  }
};

}  // namespace

VecMathKernels vec_math_kernels() {
  return {elementwise<Exp>,     elementwise<Log>,  elementwise<Log1p>,
          elementwise<Sigmoid>, elementwise<Tanh>, elementwise<NormalCdf>};
}

}  // namespace fastnn::FASTNN_ISA
