#include "core/cuda/reduce.cuh"
#include "ops/clip/clip_cuda.h"
#include "ops/clip/clip_rule.h"
#include "ops/optim/multi_tensor.cuh"

namespace fastnn::cuda {

namespace {

constexpr const char* kOp = "clip_grad_norm";

// Per multiprocessor, all resident at once. Every block of the second kernel reads the sums of all blocks of
// the first one, which is why there are no more.
constexpr int64_t kSumsPerMultiprocessor = 8;

struct Clipping {
  static constexpr int kStates = 0;
  struct Common {
    ClipOptions options;
    void* norm;
    double* sums;
    int64_t count;  // of the sums; in the first kernel, of those written by earlier launches
  };
};
using ClipLaunch = UpdateLaunch<Clipping>;

int64_t wanted_sums() { return int64_t{device_limits().multiprocessors} * kSumsPerMultiprocessor; }

template <class T>
__global__ void __launch_bounds__(kUpdateThreads) sum_squares(const __grid_constant__ ClipLaunch launch) {
  constexpr int kSize = kPackSize<T>;
  const auto& t = tensor_of_block(launch);
  const T* const grad = static_cast<const T*>(t.grad);
  double sum = 0;
  for_each_pack<T>(t, launch.chunk, [&](int64_t i, bool whole, int first, int last) {
    Acc<T> g[kSize];
    read_lanes(grad + i, whole, first, last, g);
#pragma unroll
    for (int e = 0; e < kSize; ++e) sum += double{g[e]} * double{g[e]};
  });
  __shared__ Sum slots[kMaxWarps];
  sum = sum_block(sum, slots);
  if (threadIdx.x == 0) launch.common.sums[launch.common.count + blockIdx.x] = sum;
}

template <class T>
__global__ void __launch_bounds__(kUpdateThreads) scale(const __grid_constant__ ClipLaunch launch) {
  using S = Acc<T>;
  constexpr int kSize = kPackSize<T>;
  const auto& common = launch.common;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < common.count; i += kUpdateThreads) sum += common.sums[i];
  __shared__ Sum slots[kMaxWarps];
  sum = sum_block(sum, slots);

  const auto stored = [](S x) { return to_acc(from_acc<T>(x)); };
  const T norm = from_acc<T>(static_cast<S>(sqrt(sum)));
  if (blockIdx.x == 0 && threadIdx.x == 0) *static_cast<T*>(common.norm) = norm;
  if (common.options.only_finite && !is_finite(to_acc(norm))) return;
  const S factor = clip_factor(to_acc(norm), common.options.max_norm, stored);
  if (factor == 1) return;

  const auto& t = tensor_of_block(launch);
  T* const grad = static_cast<T*>(t.param);
  for_each_pack<T>(t, launch.chunk, [&](int64_t i, bool whole, int first, int last) {
    S g[kSize];
    read_lanes(grad + i, whole, first, last, g);
#pragma unroll
    for (int e = 0; e < kSize; ++e) g[e] *= factor;
    write_lanes(grad + i, whole, first, last, g);
  });
}

}  // namespace

int64_t clip_scratch(int64_t count) {
  const int64_t launches = ceil_div<int64_t>(count, ClipLaunch::kMost);
  // A tensor may start and end inside a chunk.
  return launches * wanted_sums() + 2 * count;
}

void clip(const OptimizerTensor* tensors, int64_t count, const ClipOptions& options, void* norm,
          double* scratch, cudaStream_t stream) {
  const auto alike = [](const OptimizerTensor&, const OptimizerTensor&) { return true; };
  for_each_alike(tensors, count, alike, [&](const auto& set, const OptimizerTensor& t) {
    dispatch_floating(t.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      Clipping::Common common = {options, norm, scratch, 0};
      const auto for_each = [&](int64_t wanted, const auto& start) {
        for_each_launch<T, T, Clipping>(kOp, set, wanted, common, nullptr, {}, start);
      };
      int64_t sums = 0;
      for_each(wanted_sums(), [&](ClipLaunch& clipping, unsigned blocks) {
        clipping.common.count = sums;
        launch(kOp, sum_squares<T>, blocks, kUpdateThreads, 0, stream, clipping);
        sums += blocks;
      });
      common.count = sums;
      const int64_t wanted = int64_t{device_limits().multiprocessors} * kChunksPerMultiprocessor;
      for_each(wanted, [&](const ClipLaunch& clipping, unsigned blocks) {
        launch(kOp, scale<T>, blocks, kUpdateThreads, 0, stream, clipping);
      });
    });
  });
}

}  // namespace fastnn::cuda
