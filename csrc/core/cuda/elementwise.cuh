// y_i = f(a_i, b_i, ...) over n elements: one pass, 128-bit accesses wherever the addresses allow it.
#pragma once

#include <cstdint>

#include "core/cuda/launch.cuh"
#include "core/cuda/pack.cuh"

namespace fastnn::cuda {

constexpr int kElementwiseThreads = 256;
// Packs that a thread loads before it uses the first: 64 bytes in flight a thread and 2048 threads a
// multiprocessor are 128 KB, more than the 40 KB or so that hide the latency of device memory at an H100's
// 3.3 TB/s (3.3e12 B/s * 1.6 us / 132).
constexpr int kElementwisePacks = 4;

template <class T, int kInputs>
struct Inputs {
  const T* at[kInputs];
};

// The first `head` elements come before an address that is aligned (for all tensors at once), and those
// after the last whole pack are the tail; block 0 does both.
template <class T, int kInputs, class F>
__global__ void __launch_bounds__(kElementwiseThreads)
    map_packs(Inputs<T, kInputs> in, T* out, int64_t n, int head, F f) {
  constexpr int kSize = kPackSize<T>;
  const int64_t packs = (n - head) / kSize;
  const int64_t first = int64_t{blockIdx.x} * (kElementwiseThreads * kElementwisePacks) + threadIdx.x;
  Pack<T> loaded[kElementwisePacks][kInputs];
#pragma unroll
  for (int u = 0; u < kElementwisePacks; ++u) {
    const int64_t i = first + u * kElementwiseThreads;
    if (i < packs)
#pragma unroll
      for (int k = 0; k < kInputs; ++k) loaded[u][k] = load_pack(in.at[k] + head + i * kSize);
  }
#pragma unroll
  for (int u = 0; u < kElementwisePacks; ++u) {
    const int64_t i = first + u * kElementwiseThreads;
    if (i >= packs) break;
    Acc<T> values[kInputs][kSize], result[kSize];
#pragma unroll
    for (int k = 0; k < kInputs; ++k) unpack(loaded[u][k], values[k]);
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      if constexpr (kInputs == 1)
        result[e] = f(values[0][e]);
      else
        result[e] = f(values[0][e], values[1][e]);
    }
    store_pack(out + head + i * kSize, pack<T>(result));
  }

  if (blockIdx.x != 0) return;
  const int64_t tail = head + packs * kSize;
  const int rest = static_cast<int>(n - tail), t = static_cast<int>(threadIdx.x);
  if (t >= head + rest) return;
  const int64_t i = t < head ? t : tail + (t - head);
  if constexpr (kInputs == 1)
    out[i] = from_acc<T>(f(to_acc(in.at[0][i])));
  else
    out[i] = from_acc<T>(f(to_acc(in.at[0][i]), to_acc(in.at[1][i])));
}

// For tensors with different alignments.
template <class T, int kInputs, class F>
__global__ void __launch_bounds__(kElementwiseThreads)
    map_elements(Inputs<T, kInputs> in, T* out, int64_t n, F f) {
  const int64_t i = int64_t{blockIdx.x} * kElementwiseThreads + threadIdx.x;
  if (i >= n) return;
  if constexpr (kInputs == 1)
    out[i] = from_acc<T>(f(to_acc(in.at[0][i])));
  else
    out[i] = from_acc<T>(f(to_acc(in.at[0][i]), to_acc(in.at[1][i])));
}

template <class T, int kInputs, class F>
void launch_map(const char* op, Inputs<T, kInputs> in, T* out, int64_t n, F f, bool packs,
                cudaStream_t stream) {
  if (n == 0) return;
  if (packs) {
    const int64_t to_alignment = elements_to_alignment(out);
    const int head = static_cast<int>(to_alignment < n ? to_alignment : n);
    const int64_t a_block = int64_t{kElementwiseThreads} * kElementwisePacks * kPackSize<T>;
    const unsigned blocks = grid_blocks(ceil_div(n, a_block), op);
    launch(op, map_packs<T, kInputs, F>, blocks, kElementwiseThreads, 0, stream, in, out, n, head, f);
  } else {
    const unsigned blocks = grid_blocks(ceil_div(n, int64_t{kElementwiseThreads}), op);
    launch(op, map_elements<T, kInputs, F>, blocks, kElementwiseThreads, 0, stream, in, out, n, f);
  }
}

// `out` may be one of the inputs. F is a device function object of one or two values.
template <class T, class F>
void map(const char* op, Inputs<T, 1> in, T* out, int64_t n, F f, cudaStream_t stream) {
  launch_map(op, in, out, n, f, equally_aligned(out, in.at[0]), stream);
}
template <class T, class F>
void map(const char* op, Inputs<T, 2> in, T* out, int64_t n, F f, cudaStream_t stream) {
  launch_map(op, in, out, n, f, equally_aligned(out, in.at[0], in.at[1]), stream);
}

}  // namespace fastnn::cuda
