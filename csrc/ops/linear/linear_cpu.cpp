#include "ops/linear/linear.h"

#include "core/dtype_dispatch.h"
#include "core/parallel.h"
#include "gemm/gemm.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Stores a row segment of y = act(sum + bias).
template <class T>
struct BiasRelu {
  T* y;  // (M, N) contiguous
  int64_t n;
  const T* bias;  // (N), or null
  int64_t bias_stride;
  bool relu;

  FASTNN_INLINE void operator()(int64_t i, int64_t j, Vec<Acc<T>> v, int lanes) const {
    if (bias) v += bias_lanes(j, lanes);
    if (relu) v = v < 0 ? Vec<Acc<T>>{} : v;
    T* to = y + i * n + j;
    if (lanes == kLanes<Acc<T>>)
      store(to, v);
    else
      store_partial(to, v, lanes);
  }

  FASTNN_INLINE Vec<Acc<T>> bias_lanes(int64_t j, int lanes) const {
    if (bias_stride == 1) return lanes == kLanes<Acc<T>> ? load(bias + j) : load_partial(bias + j, lanes);
    T gathered[kLanes<Acc<T>>] = {};
    for (int l = 0; l < lanes; ++l) gathered[l] = bias[(j + l) * bias_stride];
    return load(gathered);
  }
};

template <class T>
Operand<T> operand(const TensorView& t) {
  return {t.as<const T>(), t.strides[0], t.strides[1]};
}

template <class T>
Operand<T> masked(const TensorView& dy, const TensorView* y) {
  Operand<T> g = operand<T>(dy);
  if (y) {
    g.mask = y->as<const T>();
    g.mask_row_stride = y->strides[0];
    g.mask_column_stride = y->strides[1];
  }
  return g;
}

template <class T>
void store_product(int64_t m, int64_t n, int64_t k, const Operand<T>& a, const Operand<T>& b,
                   const TensorView& out) {
  gemm<T>(m, n, k, a, b, BiasRelu<T>{out.as<T>(), n, nullptr, 0, false});
}

// Column sums of g (M, N). Rows are summed in blocks of fixed size and the blocks after that, which bounds
// the rounding error by (block + M / block) eps; threads share the columns, so their number changes no value.
template <class T>
void column_sums(int64_t m, int64_t n, const Operand<T>& g, T* sums) {
  using A = Acc<T>;
  constexpr int kL = kLanes<A>;
  constexpr int64_t kRowBlock = 128;
  constexpr int64_t kGrain = 65536;  // values
  parallel_for(ceil_div(n, kL), ceil_div(kGrain, m * kL + 1), [&](int64_t begin, int64_t end) {
    for (int64_t j = begin * kL; j < end * kL && j < n; j += kL) {
      const int lanes = n - j < kL ? static_cast<int>(n - j) : kL;
      Vec<A> total{};
      for (int64_t first = 0; first < m; first += kRowBlock) {
        const int64_t last = first + kRowBlock < m ? first + kRowBlock : m;
        Vec<A> block{};
        for (int64_t i = first; i < last; ++i) {
          if (g.rows_contiguous()) {
            block += g.values(i, j, lanes);
          } else {
            for (int l = 0; l < lanes; ++l) block[l] += g.value(i, j + l);
          }
        }
        total += block;
      }
      if (lanes == kL)
        store(sums + j, total);
      else
        store_partial(sums + j, total, lanes);
    }
  });
}

void forward(const TensorView& x, const TensorView& weight, const TensorView* bias, bool relu,
             const TensorView& y) {
  dispatch_floating(x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t m = x.shape[0], k = x.shape[1], n = weight.shape[0];
    const BiasRelu<T> epilogue{y.as<T>(), n, bias ? bias->as<const T>() : nullptr,
                               bias ? bias->strides[0] : 0, relu};
    gemm<T>(m, n, k, operand<T>(x), operand<T>(weight).transposed(), epilogue);
  });
}

void backward(const TensorView& dy, const TensorView* y, const TensorView* x, const TensorView* weight,
              const TensorView* dx, const TensorView* dw, const TensorView* db) {
  dispatch_floating(dy.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t m = dy.shape[0], n = dy.shape[1];
    const Operand<T> g = masked<T>(dy, y);
    if (dx) store_product<T>(m, dx->shape[1], n, g, operand<T>(*weight), *dx);
    if (dw) store_product<T>(n, dw->shape[1], m, g.transposed(), operand<T>(*x), *dw);
    if (db) column_sums<T>(m, n, g, db->as<T>());
  });
}

}  // namespace

LinearKernels linear_kernels() { return {forward, backward}; }

}  // namespace fastnn::FASTNN_ISA
