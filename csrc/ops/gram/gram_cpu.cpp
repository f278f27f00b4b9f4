#include "ops/gram/gram.h"

#include "core/dtype_dispatch.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "gemm/gemm.h"

namespace fastnn::FASTNN_ISA {

namespace {

constexpr int64_t kGrain = 32768;  // values copied, as for any elementwise pass

template <class T>
struct ScaledStore {
  T* out;
  int64_t columns;
  Acc<T> scale;

  Acc<T>* direct() const { return scale == 1 ? as_acc(out) : nullptr; }
  FASTNN_INLINE void operator()(int64_t i, int64_t j, Vec<Acc<T>> v, int lanes) const {
    store_lanes(out + i * columns + j, v * scale, lanes);
  }
};

// Side of the square of values mirrored at once: both its rows and its columns then stay in L1.
constexpr int64_t kMirrorBlock = 32;

template <class T>
void mirror_lower(T* g, int64_t n) {
  parallel_for(ceil_div(n, kMirrorBlock), ceil_div(kGrain, kMirrorBlock * n),
               [&](int64_t begin, int64_t end) {
                 for (int64_t block = begin; block < end; ++block) {
                   const int64_t first = block * kMirrorBlock;
                   const int64_t last = first + kMirrorBlock < n ? first + kMirrorBlock : n;
                   for (int64_t j0 = first; j0 < n; j0 += kMirrorBlock)
                     for (int64_t i = first; i < last; ++i)
                       for (int64_t j = j0 > i ? j0 : i + 1; j < j0 + kMirrorBlock && j < n; ++j)
                         g[i * n + j] = g[j * n + i];
                 }
               });
}

template <class T>
Operand<T> matrix_of(const TensorView& t, int64_t batch) {
  return {t.as<const T>() + batch * t.strides[0], t.strides[1], t.strides[2]};
}

void forward(const TensorView& f, double scale, const TensorView& g) {
  dispatch_floating(f.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t channels = f.shape[1], length = f.shape[2];
    for (int64_t b = 0; b < f.shape[0]; ++b) {
      T* out = g.as<T>() + b * channels * channels;
      const Operand<T> features = matrix_of<T>(f, b);
      const ScaledStore<T> store{out, channels, static_cast<Acc<T>>(scale)};
      gemm<T>(channels, channels, length, features, features.transposed(), epilogue_of<T>(store),
              Region::lower_triangle);
      mirror_lower(out, channels);
    }
  });
}

void backward(const TensorView& dg, const TensorView& f, double scale, const TensorView& df) {
  dispatch_floating(f.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t channels = f.shape[1], length = f.shape[2];
    const ScopedBuffer buffer(channels * channels * sizeof(T));
    T* const sum = static_cast<T*>(buffer.data());
    for (int64_t b = 0; b < f.shape[0]; ++b) {
      const Operand<T> gradient = matrix_of<T>(dg, b);
      parallel_for(channels, ceil_div(kGrain, channels + 1), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          for (int64_t j = 0; j < channels; ++j)
            sum[i * channels + j] = from_acc<T>(gradient.value(i, j) + gradient.value(j, i));
      });
      const ScaledStore<T> store{df.as<T>() + b * channels * length, length, static_cast<Acc<T>>(scale)};
      gemm<T>(channels, length, channels, Operand<T>{sum, channels, 1}, matrix_of<T>(f, b),
              epilogue_of<T>(store));
    }
  });
}

}  // namespace

GramKernels gram_kernels() { return {forward, backward}; }

}  // namespace fastnn::FASTNN_ISA
