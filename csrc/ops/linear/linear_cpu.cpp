#include "ops/linear/linear.h"

#include "core/dtype_dispatch.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "gemm/gemm.h"

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

// The one pass over dY (M, N): g = dY, or dY where y > 0 or y is NaN, stored contiguously if `g` is given,
// and db = column sums of g if `db` is given. Rows are summed in blocks of fixed size and then the blocks,
// which bounds the rounding error by (block + M / block) eps and makes the number of threads change no value.
template <class T>
void gradient_pass(int64_t m, int64_t n, const Operand<T>& dy, const Operand<T>* y, T* g, T* db) {
  using A = Acc<T>;
  constexpr int64_t kL = kLanes<A>;
  constexpr int64_t kRowBlock = 32;
  constexpr int64_t kGrain = 32768;  // values, as for any elementwise pass
  const int64_t blocks = ceil_div(m, kRowBlock), stride = ceil_div(n, kL) * kL;
  const ScopedBuffer buffer(db ? blocks * stride * sizeof(A) : 0);
  A* const sums = static_cast<A*>(buffer.data());
  parallel_for(blocks, ceil_div(kGrain, kRowBlock * n + 1), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      A* const block_sums = db ? sums + block * stride : nullptr;
      for (int64_t i = block * kRowBlock; i < min((block + 1) * kRowBlock, m); ++i)
        for (int64_t j = 0; j < n; j += kL) {
          const int lanes = static_cast<int>(min(kL, n - j));
          Vec<A> v = dy.values(i, j, lanes);
          if (y) v = y->values(i, j, lanes) <= 0 ? Vec<A>{} : v;
          if (g) store_lanes(g + i * n + j, v, lanes);
          if (db) store(block_sums + j, i == block * kRowBlock ? v : load(block_sums + j) + v);
        }
    }
  });
  if (!db) return;
  for (int64_t j = 0; j < n; j += kL) {
    Vec<A> total{};
    for (int64_t block = 0; block < blocks; ++block) total += load(sums + block * stride + j);
    store_lanes(db + j, total, static_cast<int>(min(kL, n - j)));
  }
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
    if (masked || db) gradient_pass<T>(m, n, g, y ? &output : nullptr, masked, db ? db->as<T>() : nullptr);
    if (masked) g = {masked, n, 1};
    if (dx) store_product<T>(m, dx->shape[1], n, g, operand<T>(*weight), *dx);
    if (dw) store_product<T>(n, dw->shape[1], m, g.transposed(), operand<T>(*x), *dw);
  });
}

}  // namespace

LinearKernels linear_kernels() { return {forward, backward}; }

}  // namespace fastnn::FASTNN_ISA
