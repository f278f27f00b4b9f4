#include "ops/linear/linear.h"

#include "core/dtype_dispatch.h"
#include "core/scratch.h"
#include "gemm/gemm.h"
#include "ops/linear/gradient_pass.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Stores a row segment of y = act(sum + bias).
template <class T>
struct BiasRelu {
  T* y;  // (M, N) contiguous
  int64_t n;
  const Operand<T>* bias;  // (1, N), or null
  bool relu;

  Acc<T>* direct(int64_t i, int64_t j) const { return bias || relu ? nullptr : as_acc(y + i * n + j); }
  FASTNN_INLINE void operator()(int64_t i, int64_t j, Vec<Acc<T>> v, int lanes) const {
    if (bias) v += bias->values(0, j, lanes);
    if (relu) v = v < 0 ? Vec<Acc<T>>{} : v;
    store_lanes(y + i * n + j, v, lanes);
  }
};

template <class T>
Operand<T> operand(const TensorView& t) {
  return {t.as<const T>(), t.strides[0], t.strides[1]};
}

template <class T>
void store_product(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b,
                   const TensorView& out) {
  gemm<T>(m, n, k, a, b, BiasRelu<T>{out.as<T>(), n, nullptr, false});
}

void forward(const TensorView& x, const TensorView& weight, const TensorView* bias, bool relu,
             const TensorView& y) {
  dispatch_floating(x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t m = x.shape[0], k = x.shape[1], n = weight.shape[0];
    const Operand<T> row = bias ? Operand<T>{bias->as<const T>(), 0, bias->strides[0]} : Operand<T>{};
    const BiasRelu<T> epilogue{y.as<T>(), n, bias ? &row : nullptr, relu};
    gemm<T>(m, n, k, operand<T>(x), operand<T>(weight).transposed(), epilogue);
  });
}

void backward(const TensorView& dy, const TensorView* y, const TensorView* x, const TensorView* weight,
              const TensorView* dx, const TensorView* dw, const TensorView* db) {
  dispatch_floating(dy.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t m = dy.shape[0], n = dy.shape[1];
    Operand<T> g = operand<T>(dy);
    const Operand<T> output = y ? operand<T>(*y) : g;
    const ScopedBuffer buffer(y && (dx || dw) ? m * n * sizeof(T) : 0);
    T* const masked = static_cast<T*>(buffer.data());
    const BiasRelu<T> sums{db ? db->as<T>() : nullptr, n, nullptr, false};
    if (masked || db) gradient_pass<T>(m, n, g, y ? &output : nullptr, masked, db ? &sums : nullptr);
    if (masked) g = {masked, n, 1};
    if (dx) store_product<T>(m, dx->shape[1], n, g, operand<T>(*weight), *dx);
    if (dw) store_product<T>(n, dw->shape[1], m, g.transposed(), operand<T>(*x), *dw);
  });
}

}  // namespace

LinearKernels linear_kernels() { return {forward, backward}; }

}  // namespace fastnn::FASTNN_ISA
