// Runs an update rule over the elements of many tensors, as many per launch as fit in its parameters
// (UpdateLaunch, some 55 to 80): shared by all optimizers on CUDA.
//
// A rule has kStates tensors of state, a type Common of constants shared by the elements of one tensor, a
// type Given of the inputs from which they are computed, and
//   common(given, scalars, step)   Common of one tensor; `step` is the device's count, or null
//   update(p, g, state, common)    one element, in the arithmetic's type
#pragma once

#include <vector>

#include "core/cuda/launch.cuh"
#include "core/cuda/pack.cuh"
#include "core/dtype_dispatch.h"
#include "core/host_device.h"
#include "ops/optim/master.h"
#include "ops/optim/multi_tensor.h"
#include "ops/optim/optimizers_cuda.h"

namespace fastnn::cuda {

namespace {

constexpr int kUpdateThreads = 256;
// Chunks per multiprocessor, if there is enough work: it runs three to eight blocks at a time (nvcc 13.0
// gives Adam 48 registers for float32, 76 for bfloat16 with float32 state), and several waves of them balance
// out. A block processes at least one pack per thread, so that small tensors fill the GPU.
constexpr int64_t kChunksPerMultiprocessor = 16;

// The kernel's form of OptimizerTensor: its states, and after them a master.
template <int kArrays>
struct LaunchTensor {
  void* param;
  void* grad;
  void* state[kArrays > 0 ? kArrays : 1];
  int64_t numel;
  const void* common;  // the rule's, of this tensor, in device memory; null: that of the launch
  unsigned first_block;
  int shift;  // elements from the last 16-byte boundary to all its tensors; kScattered if they differ
};
constexpr int kScattered = -1;

// The parameters of a kernel: 4 KB is supported by every device and CUDA 12.
constexpr size_t kParameterBytes = 4096;

template <class Rule, bool kMayHaveMaster = false>
struct UpdateLaunch {
  using Tensor = LaunchTensor<Rule::kStates + kMayHaveMaster>;
  static constexpr int kMost = static_cast<int>(
      (kParameterBytes - sizeof(typename Rule::Common) - sizeof(DeviceScalars) - 24) / sizeof(Tensor));
  typename Rule::Common common;
  DeviceScalars scalars;
  int64_t chunk;  // elements per block
  int count;
  Tensor tensors[kMost];
};

FASTNN_HOST_DEVICE double read_lr(const DeviceScalars& scalars, double otherwise) {
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

// The tensor of this block: the last that does not start after it.
template <class Launch>
__device__ __forceinline__ const typename Launch::Tensor& tensor_of_block(const Launch& launch) {
  int low = 0, high = launch.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (launch.tensors[middle].first_block <= blockIdx.x ? low : high) = middle;
  }
  return launch.tensors[low];
}

// Calls body(i, whole, first, last) for this thread's packs of this block: i is the offset of a pack in the
// tensor, whose elements [first, last) are to be processed. A whole pack is aligned.
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

// Whole packs and parts of them share one copy of the rule: in two copies the compiler might contract
// products and sums differently, and the bits of an element would depend on its neighbours.
template <class T, class State, class Rule>
__global__ void __launch_bounds__(kUpdateThreads)
    update_tensors(const __grid_constant__ UpdateLaunch<Rule, may_have_master<T, State>> launch) {
  using S = Acc<T>;
  constexpr int kSize = kPackSize<T>, kStates = Rule::kStates;
  const DeviceScalars& scalars = launch.scalars;
  if (scalars.found_inf && *scalars.found_inf != 0) return;

  const auto& t = tensor_of_block(launch);
  using Common = typename Rule::Common;
  const Common common = t.common ? *static_cast<const Common*>(t.common) : launch.common;
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
      Rule::update(p[e], g[e], states, common);
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

template <class Rule>
struct PrepareLaunch {
  static constexpr int kMost = static_cast<int>(
      (kParameterBytes - sizeof(typename Rule::Given) - sizeof(DeviceScalars) - 24) / sizeof(float*));
  typename Rule::Given given;
  DeviceScalars scalars;
  typename Rule::Common* common;
  int count;
  float* steps[kMost];
};

// Counts the steps of tensors, and computes the constants of their updates: once, because the powers of Adam
// in float64 take longer than all other work of a block of the update.
template <class Rule>
__global__ void __launch_bounds__(kUpdateThreads)
    prepare_tensors(const __grid_constant__ PrepareLaunch<Rule> launch) {
  if (launch.scalars.found_inf && *launch.scalars.found_inf != 0) return;
  for (int i = threadIdx.x; i < launch.count; i += kUpdateThreads) {
    float* const step = launch.steps[i];
    if (step) *step += 1;
    launch.common[i] = Rule::common(launch.given, launch.scalars, step);
  }
}

template <class Rule>
void launch_prepare(const char* op, const std::vector<const OptimizerTensor*>& tensors,
                    const typename Rule::Given& given, const DeviceScalars& scalars,
                    typename Rule::Common* common, cudaStream_t stream) {
  using Launch = PrepareLaunch<Rule>;
  static_assert(sizeof(Launch) <= kParameterBytes);
  for (size_t next = 0; next < tensors.size();) {
    Launch prepare = {given, scalars, common + next, 0, {}};
    for (; next < tensors.size() && prepare.count < Launch::kMost; ++next)
      prepare.steps[prepare.count++] = tensors[next]->device_step;
    launch(op, prepare_tensors<Rule>, 1, kUpdateThreads, 0, stream, prepare);
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

// Calls start(launch, blocks) for tensors of one dtype, with state stored as State and shared constants
// `common`, as seldom as their addresses fit in the parameters of a kernel; `wanted` is how many blocks a
// launch should have. If each tensor has its own constants, `own` is their address in device memory.
template <class T, class State, class Rule, class Start>
void for_each_launch(const char* op, const std::vector<const OptimizerTensor*>& tensors, int64_t wanted,
                     const typename Rule::Common& common, const typename Rule::Common* own,
                     const DeviceScalars& scalars, const Start& start) {
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
      if (t.numel == 0) continue;
      auto& to = update.tensors[update.count++];
      to.param = t.param;
      to.grad = const_cast<void*>(t.grad);  // written if grad_scale is set, as the caller has declared
      for (int k = 0; k < Rule::kStates; ++k) to.state[k] = t.state[k];
      if constexpr (may_have_master<T, State>) to.state[Rule::kStates] = t.master;
      to.numel = t.numel;
      to.common = own ? own + next : nullptr;
      to.shift = shift_of<T, State, Rule::kStates>(t);
      elements += t.numel;
    }
    if (update.count == 0) return;
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
                   const typename Rule::Common& common, const typename Rule::Common* own,
                   const DeviceScalars& scalars, cudaStream_t stream) {
  const int64_t wanted = int64_t{device_limits().multiprocessors} * kChunksPerMultiprocessor;
  const auto start = [&](const auto& update, unsigned blocks) {
    launch(op, update_tensors<T, State, Rule>, blocks, kUpdateThreads, 0, stream, update);
  };
  for_each_launch<T, State, Rule>(op, tensors, wanted, common, own, scalars, start);
}

// For tensors grouped by for_each_alike. It uses their part of `memory`, kCommonBytes for each tensor, which
// is null if the host knows everything.
template <class T, class Rule>
void launch_update(const char* op, const std::vector<const OptimizerTensor*>& tensors,
                   const typename Rule::Given& given, const DeviceScalars& scalars, char*& memory,
                   cudaStream_t stream) {
  using Common = typename Rule::Common;
  static_assert(sizeof(Common) <= kCommonBytes);
  Common common = {};
  Common* own = nullptr;
  if (memory) {
    own = reinterpret_cast<Common*>(memory);
    memory += static_cast<int64_t>(tensors.size()) * kCommonBytes;
    launch_prepare<Rule>(op, tensors, given, scalars, own, stream);
  } else {
    common = Rule::common(given, scalars, nullptr);
  }
  if constexpr (sizeof(T) == 2)
    if (tensors.front()->float_state)
      return launch_stored<T, float, Rule>(op, tensors, common, own, scalars, stream);
  launch_stored<T, T, Rule>(op, tensors, common, own, scalars, stream);
}

// Calls update(tensors, one of them) for every group with the same dtypes of parameter and state and
// otherwise alike.
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
      set.push_back(&tensors[j]);
    }
    update(set, tensors[i]);
  }
}

}  // namespace

}  // namespace fastnn::cuda
