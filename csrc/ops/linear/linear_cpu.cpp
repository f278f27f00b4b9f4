#include "ops/linear/linear.h"

#include "core/dtype_dispatch.h"
#include "core/scratch.h"
#include "gemm/activated_epilogue.h"
#include "gemm/gemm.h"
#include "ops/linear/gradient_pass.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Stores a row segment of y = sum + bias, or of its ReLU.
template <class T, bool kRelu>
struct Biased {
  T* y;  // (M, N) contiguous
  int64_t n;
  const Operand<T>* bias;  // (1, N), or null

  Acc<T>* direct() const { return kRelu || bias ? nullptr : as_acc(y); }
  FASTNN_INLINE void operator()(int64_t i, int64_t j, Vec<Acc<T>> v, int lanes) const {
    if (bias) v += bias->values(0, j, lanes);
    if constexpr (kRelu) v = activate<Activation::relu>(v);
    store_lanes(y + i * n + j, v, lanes);
  }
};

// Stores y = act(z), and z = sum + bias itself if asked.
template <class T>
struct Activated {
  static constexpr bool kGradient = false;
  T* y;  // (M, N) contiguous
  T* z;  // the same, or null
  int64_t n;
  const Operand<T>* bias;  // (1, N), or null
  Activation activation;

  FASTNN_INLINE Vec<Acc<T>> before(int64_t i, int64_t j, Vec<Acc<T>> v, int lanes) const {
    if (bias) v += bias->values(0, j, lanes);
    if (z) store_lanes(z + i * n + j, v, lanes);
    return v;
  }
  FASTNN_INLINE void after(int64_t i, int64_t j, Vec<Acc<T>> v, int lanes) const {
    store_lanes(y + i * n + j, v, lanes);
  }
};

// Stores a row segment of dX times the gradient of the ReLU with output X.
template <class T>
struct ThroughRelu {
  T* dx;  // (M, N) contiguous
  int64_t n;
  Operand<T> saved;

  Acc<T>* direct() const { return nullptr; }
  FASTNN_INLINE void operator()(int64_t i, int64_t j, Vec<Acc<T>> v, int lanes) const {
    v = activation_gradient<Activation::relu>(v, saved.values(i, j, lanes));
    store_lanes(dx + i * n + j, v, lanes);
  }
};

// The same for another activation.
template <class T>
struct ThroughActivation {
  static constexpr bool kGradient = true;
  T* dx;  // (M, N) contiguous
  int64_t n;
  Operand<T> saved;
  Activation activation;

  FASTNN_INLINE Vec<Acc<T>> before(int64_t, int64_t, Vec<Acc<T>> v, int) const { return v; }
  FASTNN_INLINE void after(int64_t i, int64_t j, Vec<Acc<T>> v, int lanes) const {
    store_lanes(dx + i * n + j, v, lanes);
  }
};

template <class T>
Operand<T> operand(const TensorView& t) {
  return {t.as<const T>(), t.strides[0], t.strides[1]};
}

template <class T>
using Plain = Biased<T, false>;

void forward(const TensorView& x, const TensorView& weight, const TensorView* bias, Activation activation,
             const TensorView& y, const TensorView* z) {
  dispatch_floating(x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t m = x.shape[0], k = x.shape[1], n = weight.shape[0];
    const Operand<T> row = bias ? Operand<T>{bias->as<const T>(), 0, bias->strides[0]} : Operand<T>{};
    const auto multiply = [&](const Epilogue<T>& epilogue) {
      gemm<T>(m, n, k, operand<T>(x), operand<T>(weight).transposed(), epilogue);
    };
    if (activation == Activation::none)
      multiply(epilogue_of<T>(Plain<T>{y.as<T>(), n, bias ? &row : nullptr}));
    else if (activation == Activation::relu)
      multiply(epilogue_of<T>(Biased<T, true>{y.as<T>(), n, bias ? &row : nullptr}));
    else
      multiply(activated_epilogue<T>(Activated<T>{y.as<T>(),
                                                  from_preactivation(activation) && z ? z->as<T>() : nullptr,
                                                  n, bias ? &row : nullptr, activation}));
  });
}

// dX = g W, times the gradient of the activation below.
template <class T>
void input_gradient(const LinearGradients& args, const Operand<T>& g) {
  const int64_t m = args.dy.shape[0], n = args.dy.shape[1], k = args.dx->shape[1];
  const Operand<T> weight = operand<T>(*args.weight);
  T* const dx = args.dx->as<T>();
  const Activation below = args.below_activation;
  if (below == Activation::none) return gemm<T>(m, k, n, g, weight, epilogue_of<T>(Plain<T>{dx, k, nullptr}));
  const Operand<T> saved = operand<T>(*args.below_saved);
  if (below == Activation::relu)
    return gemm<T>(m, k, n, g, weight, epilogue_of<T>(ThroughRelu<T>{dx, k, saved}));
  gemm<T>(m, k, n, g, weight, activated_epilogue<T>(ThroughActivation<T>{dx, k, saved, below}));
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
    const Plain<T> sums{args.db ? args.db->as<T>() : nullptr, n, nullptr};
    if (own || args.db) gradient_pass(m, n, g, args.activation, saved, own, args.db ? &sums : nullptr);
    if (own) g = {own, n, 1};
    if (args.dx) input_gradient(args, g);
    if (args.dw) {
      const int64_t k = args.dw->shape[1];
      gemm<T>(n, k, m, g.transposed(), operand<T>(*args.x),
              epilogue_of<T>(Plain<T>{args.dw->as<T>(), k, nullptr}));
    }
  });
}

}  // namespace

LinearKernels linear_kernels() { return {forward, backward}; }

}  // namespace fastnn::FASTNN_ISA
