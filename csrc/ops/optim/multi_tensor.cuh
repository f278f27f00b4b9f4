// Runs an update rule over the elements of many tensors, as many a launch as its parameters hold
// (UpdateLaunch, some 55 to 80): what all optimizers share on CUDA.
//
// A rule has kStates tensors of state, a type Common of numbers that come with the launch, a type Constants
// and
//   constants(common, scalars, step)   Constants of one tensor; `step` is where the device counts it, or null
//   update(p, g, state, constants)     one element, in the arithmetic's type
#pragma once

#include <vector>

#include "core/cuda/launch.cuh"
#include "core/cuda/pack.cuh"
#include "core/dtype_dispatch.h"
#include "ops/optim/master.h"
#include "ops/optim/multi_tensor.h"

namespace fastnn::cuda {

namespace {

constexpr int kUpdateThreads = 256;
// Chunks that each multiprocessor has, where there is so much to do: it runs three to eight blocks at a time
// (nvcc 13.0 gives Adam 48 registers for float32, 76 for bfloat16 with float32 state), and several rounds of
// them even out. A block runs through at least one pack a thread, so that small tensors fill the GPU.
constexpr int64_t kChunksPerMultiprocessor = 16;

// As a kernel has it: what OptimizerTensor has of states, and of a master after them.
template <int kArrays>
struct LaunchTensor {
  void* param;
  void* grad;
  void* state[kArrays > 0 ? kArrays : 1];
  int64_t numel;
  const float* step;
  unsigned first_block;
  int shift;  // elements between the last 16-byte boundary and all its tensors; kScattered where they differ
};
constexpr int kScattered = -1;

// The parameters of a kernel: 4 KB is what every device and CUDA 12 take.
constexpr size_t kParameterBytes = 4096;

template <class Rule, bool kMayHaveMaster = false>
struct UpdateLaunch {
  using Tensor = LaunchTensor<Rule::kStates + kMayHaveMaster>;
  static constexpr int kMost = static_cast<int>(
      (kParameterBytes - sizeof(typename Rule::Common) - sizeof(DeviceScalars) - 24) / sizeof(Tensor));
  typename Rule::Common common;
  DeviceScalars scalars;
  int64_t chunk;  // elements a block
  int count;
  Tensor tensors[kMost];
};

__device__ __forceinline__ double read_lr(const DeviceScalars& scalars, double otherwise) {
  if (!scalars.lr) return otherwise;
  return scalars.lr_is_double ? *static_cast<const double*>(scalars.lr)
                              : double{*static_cast<const float*>(scalars.lr)};
}

// kSize elements at p, in packs; or of them those from `first` to before `last`.
template <class T, int kSize = kPackSize<T>>
__device__ __forceinline__ void read_lanes(const T* p, bool whole, int first, int last, Acc<T>* to) {
  if (whole) {
#pragma unroll
    for (int e = 0; e < kSize; e += kPackSize<T>) unpack(load_pack(p + e), to + e);
    return;
  }
#pragma unroll
  for (int e = 0; e < kSize; ++e) to[e] = e >= first && e < last ? to_acc(p[e]) : Acc<T>(0);
}
template <class T, int kSize = kPackSize<T>>
__device__ __forceinline__ void write_lanes(T* p, bool whole, int first, int last, const Acc<T>* from) {
  if (whole) {
#pragma unroll
    for (int e = 0; e < kSize; e += kPackSize<T>) store_pack(p + e, pack<T>(from + e));
    return;
  }
#pragma unroll
  for (int e = 0; e < kSize; ++e)
    if (e >= first && e < last) p[e] = from_acc<T>(from[e]);
}

// The tensor of this block: the last that does not begin after it.
template <class Launch>
__device__ __forceinline__ const typename Launch::Tensor& tensor_of_block(const Launch& launch) {
  int low = 0, high = launch.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (launch.tensors[middle].first_block <= blockIdx.x ? low : high) = middle;
  }
  return launch.tensors[low];
}

// Calls body(i, whole, first, last) for the packs of this block that this thread has: i is the offset of a
// pack in the tensor, and its elements [first, last) are to be worked on. A whole pack is aligned.
template <class T, class Tensor, class Body>
__device__ __forceinline__ void for_each_pack(const Tensor& t, int64_t chunk, const Body& body) {
  constexpr int kSize = kPackSize<T>;
  // Offsets count from the last boundary before the tensor, so that whole packs are aligned.
  const bool aligned = t.shift != kScattered;
  const int shift = aligned ? t.shift : 0;
  const int64_t begin = (blockIdx.x - t.first_block) * chunk - shift;
  const int64_t end = begin + chunk < t.numel ? begin + chunk : t.numel;
  for (int64_t i = begin + int64_t{threadIdx.x} * kSize; i < end; i += kUpdateThreads * kSize) {
    const int first = i < 0 ? static_cast<int>(-i) : 0;
    const int last = end - i < kSize ? static_cast<int>(end - i) : kSize;
    body(i, aligned && first == 0 && last == kSize, first, last);
  }
}

template <class T, class State>
constexpr bool may_have_master = sizeof(T) < sizeof(State);

// Whole packs and parts of them go through one copy of the rule: in two copies the compiler might contract
// products and sums differently, and the bits of an element would depend on its neighbours.
template <class T, class State, class Rule>
__global__ void __launch_bounds__(kUpdateThreads)
    update_tensors(const __grid_constant__ UpdateLaunch<Rule, may_have_master<T, State>> launch) {
  using S = Acc<T>;
  constexpr int kSize = kPackSize<T>, kStates = Rule::kStates;
  const DeviceScalars& scalars = launch.scalars;
  if (scalars.found_inf && *scalars.found_inf != 0) return;

  const auto& t = tensor_of_block(launch);
  __shared__ typename Rule::Constants shared;
  if (threadIdx.x == 0) shared = Rule::constants(launch.common, scalars, t.step);
  __syncthreads();
  const typename Rule::Constants constants = shared;
  const S grad_scale = scalars.grad_scale ? static_cast<S>(*scalars.grad_scale) : S(1);

  T* const param = static_cast<T*>(t.param);
  T* const grad = static_cast<T*>(t.grad);
  S* master = nullptr;
  if constexpr (may_have_master<T, State>) master = static_cast<S*>(t.state[kStates]);
  for_each_pack<T>(t, launch.chunk, [&](int64_t i, bool whole, int first, int last) {
    S p[kSize], g[kSize], state[kMaxStates][kSize] = {};
    read_lanes(param + i, whole, first, last, p);
    read_lanes(grad + i, whole, first, last, g);
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      read_lanes<State, kSize>(static_cast<const State*>(t.state[k]) + i, whole, first, last, state[k]);
    if (master) {
      S masters[kSize];
      read_lanes<S, kSize>(master + i, whole, first, last, masters);
#pragma unroll
      for (int e = 0; e < kSize; ++e)
        p[e] = fastnn::cuda::current_master(masters[e], to_acc(from_acc<T>(masters[e])), p[e]);
    }
    if (scalars.grad_scale) {
#pragma unroll
      for (int e = 0; e < kSize; ++e) g[e] /= grad_scale;
      write_lanes(grad + i, whole, first, last, g);
    }
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      S states[kMaxStates];
#pragma unroll
      for (int k = 0; k < kMaxStates; ++k) states[k] = state[k][e];
      Rule::update(p[e], g[e], states, constants);
#pragma unroll
      for (int k = 0; k < kStates; ++k) state[k][e] = states[k];
    }
    write_lanes(param + i, whole, first, last, p);
    if (master) write_lanes<S, kSize>(master + i, whole, first, last, p);
#pragma unroll
    for (int k = 0; k < kStates; ++k)
      write_lanes<State, kSize>(static_cast<State*>(t.state[k]) + i, whole, first, last, state[k]);
  });
}

struct StepLaunch {
  static constexpr int kMost = static_cast<int>(kParameterBytes / sizeof(float*)) - 2;
  const float* found_inf;
  int count;
  float* steps[kMost];
};

// A template, so that files which count no steps have none of it.
template <class Rule>
__global__ void __launch_bounds__(kUpdateThreads) count_steps(const __grid_constant__ StepLaunch launch) {
  if (launch.found_inf && *launch.found_inf != 0) return;
  for (int i = threadIdx.x; i < launch.count; i += kUpdateThreads) *launch.steps[i] += 1;
}

template <class Rule, class Tensor>
void launch_steps(const char* op, const Tensor* tensors, int64_t count, const DeviceScalars& scalars,
                  cudaStream_t stream) {
  StepLaunch steps = {};
  steps.found_inf = scalars.found_inf;
  for (int64_t i = 0; i < count; ++i) {
    if (tensors[i].device_step) steps.steps[steps.count++] = tensors[i].device_step;
    if (steps.count == 0 || (steps.count < StepLaunch::kMost && i + 1 < count)) continue;
    launch(op, count_steps<Rule>, 1, kUpdateThreads, 0, stream, steps);
    steps.count = 0;
  }
}

template <class T, class State, int kStates>
int shift_of(const OptimizerTensor& t) {
  const auto offset = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % kPackBytes; };
  const uintptr_t shift = offset(t.param) / sizeof(T), of_state = shift * sizeof(State) % kPackBytes;
  bool equal = offset(t.grad) == offset(t.param);
  for (int k = 0; k < kStates; ++k) equal = equal && offset(t.state[k]) == of_state;
  if (t.master) equal = equal && offset(t.master) == of_state;
  return equal ? static_cast<int>(shift) : kScattered;
}

// Calls start(launch, blocks) for tensors of one dtype, with state stored as State, that have `common` in
// common, as seldom as their addresses fit the parameters of a kernel; `wanted` is how many blocks a launch
// should have.
template <class T, class State, class Rule, class Start>
void for_each_launch(const char* op, const std::vector<const OptimizerTensor*>& tensors, int64_t wanted,
                     const typename Rule::Common& common, const DeviceScalars& scalars, const Start& start) {
  using Launch = UpdateLaunch<Rule, may_have_master<T, State>>;
  static_assert(sizeof(Launch) <= kParameterBytes);
  constexpr int64_t kPass = kUpdateThreads * kPackSize<T>;
  for (size_t next = 0; next < tensors.size();) {
    Launch update = {};
    update.common = common;
    update.scalars = scalars;
    int64_t elements = 0;
    for (; next < tensors.size() && update.count < Launch::kMost; ++next) {
      const OptimizerTensor& t = *tensors[next];
      auto& to = update.tensors[update.count++];
      to.param = t.param;
      to.grad = const_cast<void*>(t.grad);  // written under grad_scale, as the caller has declared
      for (int k = 0; k < Rule::kStates; ++k) to.state[k] = t.state[k];
      if constexpr (may_have_master<T, State>) to.state[Rule::kStates] = t.master;
      to.numel = t.numel;
      to.step = t.device_step;
      to.shift = shift_of<T, State, Rule::kStates>(t);
      elements += t.numel;
    }
    update.chunk = ceil_div(ceil_div(elements, wanted), kPass) * kPass;
    int64_t blocks = 0;
    for (int i = 0; i < update.count; ++i) {
      auto& t = update.tensors[i];
      t.first_block = grid_blocks(blocks, op);
      blocks += ceil_div(t.numel + (t.shift == kScattered ? 0 : t.shift), update.chunk);
    }
    start(update, grid_blocks(blocks, op));
  }
}

template <class T, class State, class Rule>
void launch_stored(const char* op, const std::vector<const OptimizerTensor*>& tensors,
                   const typename Rule::Common& common, const DeviceScalars& scalars, cudaStream_t stream) {
  const int64_t wanted = int64_t{device_limits().multiprocessors} * kChunksPerMultiprocessor;
  const auto start = [&](const auto& update, unsigned blocks) {
    launch(op, update_tensors<T, State, Rule>, blocks, kUpdateThreads, 0, stream, update);
  };
  for_each_launch<T, State, Rule>(op, tensors, wanted, common, scalars, start);
}

// For tensors that for_each_alike found alike.
template <class T, class Rule>
void launch_update(const char* op, const std::vector<const OptimizerTensor*>& tensors,
                   const typename Rule::Common& common, const DeviceScalars& scalars, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2)
    if (tensors.front()->float_state)
      return launch_stored<T, float, Rule>(op, tensors, common, scalars, stream);
  launch_stored<T, T, Rule>(op, tensors, common, scalars, stream);
}

// Calls update(tensors, one of them) for every set of them that has one dtype, of parameter and of state, and
// is alike otherwise; empty ones are left out.
template <class Tensor, class Alike, class Update>
void for_each_alike(const Tensor* tensors, int64_t count, const Alike& alike, const Update& update) {
  std::vector<bool> done(static_cast<size_t>(count));
  std::vector<const OptimizerTensor*> set;
  for (int64_t i = 0; i < count; ++i) {
    if (done[static_cast<size_t>(i)]) continue;
    set.clear();
    for (int64_t j = i; j < count; ++j) {
      const auto at = static_cast<size_t>(j);
      if (done[at] || tensors[j].dtype != tensors[i].dtype) continue;
      if (tensors[j].float_state != tensors[i].float_state || !alike(tensors[i], tensors[j])) continue;
      done[at] = true;
      if (tensors[j].numel > 0) set.push_back(&tensors[j]);
    }
    if (!set.empty()) update(set, tensors[i]);
  }
}

}  // namespace

}  // namespace fastnn::cuda
