#include "ops/adam/adam.h"

#include "core/dtype_dispatch.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "ops/adam/adam_update.h"

namespace fastnn::FASTNN_ISA {

namespace {

// One thread updates about one element in a nanosecond and a parallel region costs about half a microsecond.
constexpr int64_t kElementsPerThread = 4096;

// Work is cut into chunks of this many elements of one tensor, whatever the number of threads: where a vector
// loop ends and its remainder begins depends on the tensor alone, and so does every bit of the result. A
// chunk takes about a microsecond, long against what it costs to find the next one.
constexpr int64_t kChunk = 1024;

template <class S>
AdamConstants<S> constants(const AdamTensor& t, const AdamOptions& o) {
  return {static_cast<S>(o.maximize ? -1 : 1), static_cast<S>(o.l2),          static_cast<S>(o.decay),
          static_cast<S>(1 - o.beta1),         static_cast<S>(o.beta1),       static_cast<S>(o.beta2),
          static_cast<S>(1 - o.beta2),         static_cast<S>(t.denom_scale), static_cast<S>(o.eps),
          static_cast<S>(-t.step_size)};
}

template <class T, bool kAmsgrad>
void update_range(const AdamTensor& t, const AdamOptions& options, int64_t begin, int64_t end) {
  using S = Acc<T>;
  constexpr int kStep = kLanes<S>;
  const AdamConstants<S> c = constants<S>(t, options);
  T* p = static_cast<T*>(t.param);
  const T* g = static_cast<const T*>(t.grad);
  T* m = static_cast<T*>(t.exp_avg);
  T* v = static_cast<T*>(t.exp_avg_sq);
  T* vmax = static_cast<T*>(t.max_exp_avg_sq);
  int64_t i = begin;
  for (; i + kStep <= end; i += kStep) {
    Vec<S> pi = load(p + i), mi = load(m + i), vi = load(v + i), xi = kAmsgrad ? load(vmax + i) : Vec<S>{};
    adam_update<kAmsgrad>(pi, load(g + i), mi, vi, xi, c);
    store(p + i, pi);
    store(m + i, mi);
    store(v + i, vi);
    if (kAmsgrad) store(vmax + i, xi);
  }
  if (const int rest = static_cast<int>(end - i)) {
    Vec<S> pi = load_partial(p + i, rest), mi = load_partial(m + i, rest), vi = load_partial(v + i, rest);
    Vec<S> xi = kAmsgrad ? load_partial(vmax + i, rest) : Vec<S>{};
    adam_update<kAmsgrad>(pi, load_partial(g + i, rest), mi, vi, xi, c);
    store_partial(p + i, pi, rest);
    store_partial(m + i, mi, rest);
    store_partial(v + i, vi, rest);
    if (kAmsgrad) store_partial(vmax + i, xi, rest);
  }
}

void update_chunk(const AdamTensor& t, const AdamOptions& options, int64_t chunk) {
  const int64_t begin = chunk * kChunk;
  const int64_t end = begin + kChunk < t.numel ? begin + kChunk : t.numel;
  dispatch_floating(t.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (options.amsgrad)
      update_range<T, true>(t, options, begin, end);
    else
      update_range<T, false>(t, options, begin, end);
  });
}

// The tensor that a chunk belongs to: the last one that does not begin behind it.
int64_t tensor_of(const AdamTensor* tensors, int64_t count, int64_t chunk) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (tensors[middle].first_chunk <= chunk ? low : high) = middle;
  }
  return low;
}

void adam_update_tensors(AdamTensor* tensors, int64_t count, const AdamOptions& options) {
  int64_t elements = 0, chunks = 0;
  for (int64_t i = 0; i < count; ++i) {
    tensors[i].first_chunk = chunks;
    chunks += (tensors[i].numel + kChunk - 1) / kChunk;
    elements += tensors[i].numel;
  }
  // Chunks of small tensors are not full: so many of them are worth a thread as hold enough elements.
  const int64_t grain = elements > 0 ? (chunks * kElementsPerThread + elements - 1) / elements : 1;
  parallel_for(chunks, grain, [&](int64_t begin, int64_t end) {
    int64_t i = tensor_of(tensors, count, begin);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      while (i + 1 < count && tensors[i + 1].first_chunk <= chunk) ++i;
      update_chunk(tensors[i], options, chunk - tensors[i].first_chunk);
    }
  });
}

}  // namespace

AdamKernels adam_kernels() { return {adam_update_tensors}; }

}  // namespace fastnn::FASTNN_ISA
