#include "core/scratch.h"
#include "ops/clip/clip.h"
#include "ops/clip/clip_rule.h"
#include "ops/optim/multi_tensor_cpu.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Squares of float are exact in double, and none overflows or vanishes.
FASTNN_INLINE void add_squares(Vec<double> v, Vec<double>* sums) { sums[0] += v * v; }
FASTNN_INLINE void add_squares(Vec<float> v, Vec<double>* sums) {
  typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
  Half halves[2];
  __builtin_memcpy(halves, &v, sizeof(v));
  for (int h = 0; h < 2; ++h) {
#if defined(__AVX512F__)  // otherwise GCC converts quarters and joins them
    const Vec<double> wide = (Vec<double>)_mm512_maskz_cvtps_pd(0xff, (__m256)halves[h]);
#else
    const Vec<double> wide = __builtin_convertvector(halves[h], Vec<double>);
#endif
    sums[h] += wide * wide;
  }
}

template <class T>
double sum_of_squares(const T* g, int64_t n) {
  constexpr int kStep = kLanes<Acc<T>>;
  Vec<double> sums[4] = {};
  int64_t i = 0;
  for (; i + 2 * kStep <= n; i += 2 * kStep) {
    add_squares(load(g + i), sums);
    add_squares(load(g + i + kStep), sums + 2);
  }
  for (; i < n; i += kStep)
    add_squares(n - i < kStep ? load_partial(g + i, static_cast<int>(n - i)) : load(g + i), sums);
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T>
void scale(T* g, int64_t n, Acc<T> factor) {
  constexpr int kStep = kLanes<Acc<T>>;
  const Vec<Acc<T>> factors = splat(factor);
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) store(g + i, load(g + i) * factors);
  const int rest = static_cast<int>(n - i);
  if (rest > 0) store_partial(g + i, load_partial(g + i, rest) * factors, rest);
}

// The sums of chunks are stored separately and added in order: threads do not affect the result.
double global_sum_of_squares(OptimizerTensor* tensors, int64_t count) {
  int64_t chunks = 0;
  for (int64_t i = 0; i < count; ++i) chunks += (tensors[i].numel + kChunk - 1) / kChunk;
  double* const sums =
      static_cast<double*>(thread_scratch(Scratch::accumulate, static_cast<size_t>(chunks) * sizeof(double)));
  update_tensors(tensors, count, [&](const OptimizerTensor& t, int64_t begin, int64_t end) {
    dispatch_floating(t.dtype, [&](auto tag) {
      const auto* const grad = static_cast<const typename decltype(tag)::type*>(t.grad);
      sums[t.first_chunk + begin / kChunk] = sum_of_squares(grad + begin, end - begin);
    });
  });
  double sum = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += sums[chunk];
  return sum;
}

template <class T>
bool clip_all(OptimizerTensor* tensors, int64_t count, const ClipOptions& options, T* norm_out) {
  using S = Acc<T>;
  const auto stored = [](S x) { return to_acc(from_acc<T>(x)); };
  const S norm = stored(static_cast<S>(__builtin_sqrt(global_sum_of_squares(tensors, count))));
  *norm_out = from_acc<T>(norm);
  if (options.only_finite && !is_finite(norm)) return false;
  const S factor = clip_factor(norm, options.max_norm, stored);
  if (factor == 1) return true;
  update_tensors(tensors, count, [&](const OptimizerTensor& t, int64_t begin, int64_t end) {
    scale(static_cast<T*>(t.param) + begin, end - begin, factor);
  });
  return true;
}

bool clip(OptimizerTensor* tensors, int64_t count, const ClipOptions& options, void* norm) {
  bool clipped = true;
  dispatch_floating(tensors[0].dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    clipped = clip_all(tensors, count, options, static_cast<T*>(norm));
  });
  return clipped;
}

}  // namespace

ClipKernels clip_kernels() { return {clip}; }

}  // namespace fastnn::FASTNN_ISA
