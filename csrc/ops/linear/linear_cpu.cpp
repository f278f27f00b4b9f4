#include "ops/linear/linear.h"

#include "core/activation/activation_vec.h"
#include "core/dtype_dispatch.h"
#include "core/scratch.h"
#include "gemm/gemm.h"
#include "gemm/indirect.h"
#include "ops/linear/gradient_pass.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Stores a row segment of y = act(z), and of z = sum + bias itself if asked.
template <class T, Activation A>
struct BiasActivation {
  T* y;  // (M, N) contiguous
  T* z;  // the same, or null
  int64_t n;
  const Operand<T>* bias;  // (1, N), or null

  Acc<T>* direct(int64_t i, int64_t j) const {
    return A != Activation::none || bias ? nullptr : as_acc(y + i * n + j);
  }
  FASTNN_INLINE void operator()(int64_t i, int64_t j, Vec<Acc<T>> v, int lanes) const {
    if (bias) v += bias->values(0, j, lanes);
    if constexpr (from_preactivation(A))
      if (z) store_lanes(z + i * n + j, v, lanes);
    store_lanes(y + i * n + j, activate<A>(v), lanes);
  }
};

// Stores a row segment of dX times the gradient of the activation whose output X is.
template <class T, Activation A>
struct ActivationGradient {
  T* dx;  // (M, N) contiguous
  int64_t n;
  Operand<T> saved;

  Acc<T>* direct(int64_t, int64_t) const { return nullptr; }
  FASTNN_INLINE void operator()(int64_t i, int64_t j, Vec<Acc<T>> v, int lanes) const {
    store_lanes(dx + i * n + j, activation_gradient<A>(v, saved.values(i, j, lanes)), lanes);
  }
};

// A product whose epilogue holds the activation A.
template <class T, Activation A, class Epilogue>
void product(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b,
             const Epilogue& epilogue) {
  if constexpr (A == Activation::none || A == Activation::relu)
    gemm<T>(m, n, k, a, b, epilogue);
  else
    indirect_gemm<T>(m, n, k, a, b, indirect<T>(epilogue));
}

template <class T>
Operand<T> operand(const TensorView& t) {
  return {t.as<const T>(), t.strides[0], t.strides[1]};
}

template <class T>
using Plain = BiasActivation<T, Activation::none>;

void forward(const TensorView& x, const TensorView& weight, const TensorView* bias, Activation activation,
             const TensorView& y, const TensorView* z) {
  dispatch_floating(x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t m = x.shape[0], k = x.shape[1], n = weight.shape[0];
    const Operand<T> row = bias ? Operand<T>{bias->as<const T>(), 0, bias->strides[0]} : Operand<T>{};
    dispatch_activation(activation, [&](auto act) {
      constexpr Activation kA = decltype(act)::value;
      const BiasActivation<T, kA> epilogue{y.as<T>(), z ? z->as<T>() : nullptr, n, bias ? &row : nullptr};
      product<T, kA>(m, n, k, operand<T>(x), operand<T>(weight).transposed(), epilogue);
    });
  });
}

// dX = g W, times the gradient of the activation below.
template <class T>
void input_gradient(const LinearGradients& args, const Operand<T>& g) {
  const int64_t m = args.dy.shape[0], n = args.dy.shape[1], k = args.dx->shape[1];
  const Operand<T> weight = operand<T>(*args.weight);
  T* const dx = args.dx->as<T>();
  dispatch_activation(args.below_activation, [&](auto act) {
    constexpr Activation kBelow = decltype(act)::value;
    if constexpr (kBelow == Activation::none)
      gemm<T>(m, k, n, g, weight, Plain<T>{dx, nullptr, k, nullptr});
    else
      product<T, kBelow>(m, k, n, g, weight,
                         ActivationGradient<T, kBelow>{dx, k, operand<T>(*args.below_saved)});
  });
}

void backward(const LinearGradients& args) {
  dispatch_floating(args.dy.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t m = args.dy.shape[0], n = args.dy.shape[1];
    const bool active = args.activation != Activation::none;
    Operand<T> g = operand<T>(args.dy);
    const Operand<T> saved = active ? operand<T>(*args.saved) : g;
    const ScopedBuffer buffer(active && (args.dx || args.dw) ? m * n * sizeof(T) : 0);
    T* const own = static_cast<T*>(buffer.data());
    const Plain<T> sums{args.db ? args.db->as<T>() : nullptr, nullptr, n, nullptr};
    if (own || args.db)
      dispatch_activation(args.activation, [&](auto act) {
        gradient_pass<T, decltype(act)::value>(m, n, g, saved, own, args.db ? &sums : nullptr);
      });
    if (own) g = {own, n, 1};
    if (args.dx) input_gradient(args, g);
    if (args.dw)
      gemm<T>(n, args.dw->shape[1], m, g.transposed(), operand<T>(*args.x),
              Plain<T>{args.dw->as<T>(), nullptr, args.dw->shape[1], nullptr});
  });
}

}  // namespace

LinearKernels linear_kernels() { return {forward, backward}; }

}  // namespace fastnn::FASTNN_ISA
