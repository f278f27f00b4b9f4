// Checked launches, and their sizes.
#pragma once

#include <atomic>
#include <stdexcept>
#include <string>

#include "core/cuda/device.h"

namespace fastnn::cuda {

constexpr int kWarp = 32;

template <class Int>
__host__ __device__ constexpr Int ceil_div(Int a, Int b) {
  return (a + b - 1) / b;
}

// The x dimension of a grid; throws if it is larger than devices support (2^31 - 1).
inline unsigned grid_blocks(int64_t blocks, const char* op) {
  if (blocks > INT32_MAX) throw std::runtime_error(std::string(op) + ": the tensors are too large");
  return static_cast<unsigned>(blocks);
}

namespace launch_detail {

// The kernel's parameters must not be deduced from the arguments.
template <class T>
struct Exactly {
  using type = T;
};

inline cudaLaunchAttribute cluster_of(unsigned blocks) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = blocks;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  return attribute;
}

}  // namespace launch_detail

// kernel<<<blocks, threads, shared_bytes, stream>>>(args...), the blocks in clusters of `cluster`; throws
// if it cannot be launched. `op` is named in the error. More than 48 KB of shared memory need
// allow_shared_memory.
template <class... Params>
void launch_clusters(const char* op, void (*kernel)(Params...), unsigned cluster, dim3 blocks, dim3 threads,
                     size_t shared_bytes, cudaStream_t stream,
                     typename launch_detail::Exactly<Params>::type... args) {
  cudaLaunchAttribute attribute = launch_detail::cluster_of(cluster);
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, args...), op);
}

// Lets the blocks of a kernel without static shared memory have as much shared memory as a block may have on
// the current device. Set once for each device, of which there are at most 64 (device_limits).
template <auto kKernel>
void allow_shared_memory(const char* op) {
  static std::atomic<uint64_t> allowed{0};
  int device = 0;
  check_cuda(cudaGetDevice(&device), op);
  const int bytes = device_limits().shared_bytes;
  const uint64_t bit = uint64_t{1} << device;
  if (allowed.load(std::memory_order_relaxed) & bit) return;
  check_cuda(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), op);
  allowed.fetch_or(bit, std::memory_order_relaxed);
}

// How many such clusters the device can run at once.
template <class... Params>
int most_clusters(void (*kernel)(Params...), unsigned cluster, dim3 threads, size_t shared_bytes) {
  cudaLaunchAttribute attribute = launch_detail::cluster_of(cluster);
  cudaLaunchConfig_t config = {};
  config.gridDim = cluster;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  const cudaError_t status = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
  if (status != cudaSuccess) cudaGetLastError();  // a size that the device does not have
  return status == cudaSuccess ? clusters : 0;
}

template <class... Params>
void launch(const char* op, void (*kernel)(Params...), dim3 blocks, dim3 threads, size_t shared_bytes,
            cudaStream_t stream, typename launch_detail::Exactly<Params>::type... args) {
  launch_clusters(op, kernel, 1, blocks, threads, shared_bytes, stream, args...);
}

}  // namespace fastnn::cuda
