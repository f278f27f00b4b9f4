// Runs an update rule over the elements of many tensors: shared by the kernels of all optimizers.
#pragma once

#include "core/dtype_dispatch.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "ops/optim/master.h"
#include "ops/optim/multi_tensor.h"

namespace fastnn::FASTNN_ISA {

// One thread updates about one element per nanosecond and a parallel region costs about half a microsecond.
constexpr int64_t kElementsPerThread = 4096;

// Work is split into chunks of this many elements of one tensor, for any number of threads: where a vector
// loop ends and its remainder begins depends on the tensor alone, and so does every bit of the result. A
// chunk takes about a microsecond, long compared with finding the next one.
constexpr int64_t kChunk = 1024;

template <class T>
FASTNN_INLINE Vec<Acc<T>> rounded_to(Vec<Acc<T>> x) {
  T stored[kLanes<Acc<T>>];
  store(stored, x);
  return load(stored);
}

// Updates the `lanes` elements from offset i on, whose state is stored as State. A rule has kStates and is
// called as rule(p, g, state), where p and the first kStates of `state` are read before and written after.
template <class T, class State, class Rule>
FASTNN_INLINE void update_vector(const OptimizerTensor& t, int64_t i, int lanes, const Rule& rule) {
  using S = Acc<T>;
  constexpr bool kMayHaveMaster = sizeof(T) < sizeof(State);
  Vec<S> p = load_lanes(static_cast<const T*>(t.param) + i, lanes), state[kMaxStates] = {};
  if constexpr (kMayHaveMaster)
    if (t.master) {
      const Vec<S> master = load_lanes(t.master + i, lanes);
      p = current_master(master, rounded_to<T>(master), p);
    }
  const Vec<S> g = load_lanes(static_cast<const T*>(t.grad) + i, lanes);
  for (int k = 0; k < Rule::kStates; ++k)
    state[k] = load_lanes(static_cast<const State*>(t.state[k]) + i, lanes);
  rule(p, g, state);
  store_lanes(static_cast<T*>(t.param) + i, p, lanes);
  if constexpr (kMayHaveMaster)
    if (t.master) store_lanes(t.master + i, p, lanes);
  for (int k = 0; k < Rule::kStates; ++k) store_lanes(static_cast<State*>(t.state[k]) + i, state[k], lanes);
}

// Whole vectors and the remainder share one copy of the rule: in two copies the compiler may contract
// products and sums differently, and the bits of an element would depend on where its range ends.
template <class T, class State, class Rule>
FASTNN_INLINE void update_vectors(const OptimizerTensor& t, int64_t begin, int64_t end, const Rule& rule) {
  constexpr int64_t kStep = kLanes<Acc<T>>;
  for (int64_t i = begin; i < end; i += kStep)
    update_vector<T, State>(t, i, static_cast<int>(end - i < kStep ? end - i : kStep), rule);
}

template <class T, class Rule>
FASTNN_INLINE void update_elements(const OptimizerTensor& t, int64_t begin, int64_t end, const Rule& rule) {
  if constexpr (sizeof(T) == 2)
    if (t.float_state) return update_vectors<T, float>(t, begin, end, rule);
  update_vectors<T, T>(t, begin, end, rule);
}

// The tensor that a chunk belongs to: the last one that does not start after it.
template <class Tensor>
int64_t tensor_of(const Tensor* tensors, int64_t count, int64_t chunk) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (tensors[middle].first_chunk <= chunk ? low : high) = middle;
  }
  return low;
}

// Calls update_chunk(tensor, begin, end) for every chunk, on all threads that the work is worth.
template <class Tensor, class UpdateChunk>
void update_tensors(Tensor* tensors, int64_t count, const UpdateChunk& update_chunk) {
  int64_t elements = 0, chunks = 0;
  for (int64_t i = 0; i < count; ++i) {
    tensors[i].first_chunk = chunks;
    chunks += (tensors[i].numel + kChunk - 1) / kChunk;
    elements += tensors[i].numel;
  }
  // Chunks of small tensors are not full: a thread takes as many as hold enough elements.
  const int64_t grain = elements > 0 ? (chunks * kElementsPerThread + elements - 1) / elements : 1;
  parallel_for(chunks, grain, [&](int64_t first, int64_t last) {
    int64_t i = tensor_of(tensors, count, first);
    for (int64_t chunk = first; chunk < last; ++chunk) {
      while (i + 1 < count && tensors[i + 1].first_chunk <= chunk) ++i;
      const Tensor& t = tensors[i];
      const int64_t begin = (chunk - t.first_chunk) * kChunk;
      const int64_t end = begin + kChunk < t.numel ? begin + kChunk : t.numel;
      update_chunk(t, begin, end);
    }
  });
}

}  // namespace fastnn::FASTNN_ISA
