#include <mutex>
#include <new>

#include "core/cuda/elementwise.cuh"
#include "core/dtype_dispatch.h"
#include "ops/cross_entropy/few_classes.cuh"
#include "ops/cross_entropy/many_classes_launch.cuh"

namespace fastnn::cuda {

namespace {

constexpr const char* kOp = "cross_entropy";

// From here on a row has a block of its own, or several: 512 classes are one to four loads for each of 128
// threads.
constexpr int64_t kManyClasses = 512;
// Up to here eight lanes share a row, so that a row of ten classes leaves few of them idle.
constexpr int64_t kEighthClasses = 64;

constexpr int kCountThreads = 256;
constexpr int64_t kRowsPerCountBlock = 4096;  // 32 KB of targets, 16 loads a thread

// Reads every target before a loss is computed: the number of rows that count, their weight, a bad index.
template <class T>
__global__ void __launch_bounds__(kCountThreads) count_rows(const __grid_constant__ Rows<T> p) {
  __shared__ Sum slots[kMaxWarps];
  double rows = 0, weight = 0;
  const int64_t all = p.rows(), step = int64_t{gridDim.x} * kCountThreads;
  for (int64_t row = int64_t{blockIdx.x} * kCountThreads + threadIdx.x; row < all; row += step) {
    if (p.probabilities) {
      rows += 1;
      weight += 1;
      continue;
    }
    const int64_t index = p.index_of(row);
    if (index == p.args.ignore_index) continue;
    if (p.in_range(index)) {
      rows += 1;
      weight += p.weight_of(index);
    } else {
      p.bad->index = index;
      __threadfence_system();
      *static_cast<volatile int*>(&p.bad->found) = BadIndex::kTarget;
    }
  }
  rows = sum_block(rows, slots);
  weight = sum_block(weight, slots);
  if (threadIdx.x != 0) return;
  p.scratch->rows[blockIdx.x] = rows;
  p.scratch->weight[blockIdx.x] = weight;
  if (blockIdx.x != 0) return;
  p.scratch->counter = 0;
  p.scratch->loss_so_far = p.scratch->square_so_far = 0;
}

template <class T>
Rows<T> describe(const CrossEntropyArgs& args, CrossEntropyScratch* scratch) {
  using A = Acc<T>;
  Rows<T> p = {};
  p.args = args;
  p.scratch = scratch;
  p.bad = bad_index();
  if (args.target_dtype == args.dtype) p.probabilities = static_cast<const T*>(args.target);
  const int64_t wanted = ceil_div(args.outer * args.inner, kRowsPerCountBlock);
  p.count_blocks = static_cast<int>(wanted < kCountBlocks ? wanted : kCountBlocks);
  p.dense = p.probabilities || args.label_smoothing != 0;
  p.keep = static_cast<A>(1 - args.label_smoothing);
  p.smooth = static_cast<A>(args.label_smoothing / static_cast<double>(args.classes));
  return p;
}

template <class T, int kGroup>
void launch_few(const Rows<T>& p, cudaStream_t stream) {
  const int64_t wanted = ceil_div(p.args.outer * p.args.inner, int64_t{kFewThreads / kGroup});
  const auto blocks = static_cast<unsigned>(wanted < kCrossEntropyBlocks ? wanted : kCrossEntropyBlocks);
  launch(kOp, few_classes<T, kGroup>, blocks, kFewThreads, 0, stream, p);
}

template <class T>
void run_chunk(const CrossEntropyArgs& args, const CrossEntropyArgs& batch, bool first,
               CrossEntropyScratch* scratch, cudaStream_t stream) {
  const Rows<T> all = describe<T>(batch, scratch);
  if (first) launch(kOp, count_rows<T>, all.count_blocks, kCountThreads, 0, stream, all);
  Rows<T> p = describe<T>(args, scratch);
  p.count_blocks = all.count_blocks;
  if (args.inner > 1)
    launch_few<T, 1>(p, stream);
  else if (args.classes <= kEighthClasses)
    launch_few<T, 8>(p, stream);
  else if (args.classes < kManyClasses || args.classes > kMostClasses)
    launch_few<T, kWarp>(p, stream);
  else if (p.dense)
    launch_many<T, true>(kOp, p, stream);
  else
    launch_many<T, false>(kOp, p, stream);
}

// gradient *= late * dy for one dy; without a pass over the gradient if that is 1, as after loss.backward().
template <class T>
__global__ void __launch_bounds__(kElementwiseThreads)
    scale_by_scalar(T* gradient, int64_t n, int head, const double* late, const T* dy) {
  using A = Acc<T>;
  constexpr int kSize = kPackSize<T>;
  const A factor = static_cast<A>(static_cast<double>(to_acc(*dy)) * *late);
  if (factor == 1) return;
  const int64_t packs = (n - head) / kSize, step = int64_t{gridDim.x} * kElementwiseThreads;
  const int64_t first = int64_t{blockIdx.x} * kElementwiseThreads + threadIdx.x;
  for (int64_t i = first; i < packs; i += step) {
    T* at = gradient + head + i * kSize;
    A values[kSize];
    unpack(load_pack(at), values);
#pragma unroll
    for (int e = 0; e < kSize; ++e) values[e] *= factor;
    store_pack(at, pack<T>(values));
  }
  const int64_t tail = head + packs * kSize, singles = head + (n - tail);
  if (first >= singles) return;
  T* at = gradient + (first < head ? first : tail + (first - head));
  *at = from_acc<T>(to_acc(*at) * factor);
}

// gradient *= late * dy for one dy per row.
template <class T>
__global__ void __launch_bounds__(kElementwiseThreads)
    scale_by_row(T* gradient, int64_t n, int64_t classes, int64_t inner, const double* late, const T* dy) {
  using A = Acc<T>;
  const A common = static_cast<A>(*late);
  const int64_t step = int64_t{gridDim.x} * kElementwiseThreads;
  for (int64_t i = int64_t{blockIdx.x} * kElementwiseThreads + threadIdx.x; i < n; i += step) {
    const int64_t outer = i / (classes * inner);
    const int64_t row = outer * inner + (inner == 1 ? 0 : i % inner);
    gradient[i] = from_acc<T>(to_acc(gradient[i]) * (to_acc(dy[row]) * common));
  }
}

template <class T>
void scale_gradient(const CrossEntropyArgs& args, const T* dy, bool scalar, const double* late,
                    cudaStream_t stream) {
  T* gradient = static_cast<T*>(args.gradient);
  const int64_t n = args.outer * args.classes * args.inner;
  // Few enough blocks that finding nothing to do costs nothing, and enough to saturate memory.
  const int64_t most = int64_t{device_limits().multiprocessors} * 8;
  const int64_t wanted = ceil_div(n, int64_t{kElementwiseThreads} * (scalar ? kPackSize<T> : 1));
  const auto blocks = static_cast<unsigned>(wanted < most ? wanted : most);
  if (scalar) {
    const int64_t to_alignment = elements_to_alignment(gradient);
    const int head = static_cast<int>(to_alignment < n ? to_alignment : n);
    launch(kOp, scale_by_scalar<T>, blocks, kElementwiseThreads, 0, stream, gradient, n, head, late, dy);
  } else {
    launch(kOp, scale_by_row<T>, blocks, kElementwiseThreads, 0, stream, gradient, n, args.classes,
           args.inner, late, dy);
  }
}

}  // namespace

BadIndex* bad_index() {
  static BadIndex* flag = nullptr;
  static std::once_flag made;
  std::call_once(made, [] {
    // Pinning memory is refused while a stream of this thread is captured, unless it opts out of that check.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check_cuda(cudaThreadExchangeStreamCaptureMode(&mode), kOp);
    void* memory = nullptr;
    const cudaError_t status =
        cudaHostAlloc(&memory, sizeof(BadIndex), cudaHostAllocMapped | cudaHostAllocPortable);
    check_cuda(cudaThreadExchangeStreamCaptureMode(&mode), kOp);
    check_cuda(status, kOp);
    flag = new (memory) BadIndex{0, 0};
  });
  return flag;
}

void cross_entropy_forward(const CrossEntropyArgs& args, CrossEntropyScratch* scratch, cudaStream_t stream) {
  cross_entropy_chunk(args, args, true, scratch, stream);
}

void cross_entropy_chunk(const CrossEntropyArgs& chunk, const CrossEntropyArgs& batch, bool first,
                         CrossEntropyScratch* scratch, cudaStream_t stream) {
  dispatch_floating(chunk.dtype, [&](auto tag) {
    run_chunk<typename decltype(tag)::type>(chunk, batch, first, scratch, stream);
  });
}

void cross_entropy_scale_gradient(const CrossEntropyArgs& args, const void* dy, bool scalar,
                                  const CrossEntropyScratch* scratch, cudaStream_t stream) {
  dispatch_floating(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    scale_gradient(args, static_cast<const T*>(dy), scalar, &scratch->late, stream);
  });
}

}  // namespace fastnn::cuda
