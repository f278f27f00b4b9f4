// Times the operations on which kernels for clusters of blocks depend: a cluster barrier, reads of another
// block's shared memory, and a sum over the blocks. Prints a line for each cluster size and finally a line of
// JSON, in nanoseconds; if the device has no clusters, says so in both.
//
// nvcc -arch=sm_90 -std=c++17 -O3 -I csrc benchmarks/cluster_probe.cu -o cluster_probe
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "core/cuda/ptx.cuh"
#include "core/cuda/ptx_matrix.cuh"

namespace ptx = fastnn::cuda::ptx;

namespace {

constexpr unsigned kThreads = 256;  // as in the blocks of the epoch kernel
constexpr int kRepeats = 2000;
constexpr int kWarmUps = 50;
constexpr int kBytes = 32 * 1024;  // of a block, read by its neighbour
constexpr int kFloats = kBytes / 4;
constexpr int kSummed = 1024;  // floats of each block

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

struct Times {
  long long cycles;
  unsigned long long nanoseconds;
};

__device__ __forceinline__ unsigned long long nanoseconds() {
  unsigned long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
  return now;
}

// Reads that the compiler neither drops nor moves.
__device__ __forceinline__ int read_one(const int* p) {
  int one;
  asm volatile("ld.s32 %0, [%1];" : "=r"(one) : "l"(p));
  return one;
}
__device__ __forceinline__ float4 read_four(const float* p) {
  float4 four;
  asm volatile("ld.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(four.x), "=f"(four.y), "=f"(four.z), "=f"(four.w)
               : "l"(p));
  return four;
}

// The time measured by the first thread of the cluster around kRepeats calls of `work`.
template <class Work>
__device__ __forceinline__ void clock_repeats(Times* times, Work work) {
#pragma unroll 1
  for (int i = 0; i < kWarmUps; ++i) work();
  ptx::cluster_sync();
  const unsigned long long start = nanoseconds();
  const long long cycles = clock64();
  for (int i = 0; i < kRepeats; ++i) work();
  const long long spent = clock64() - cycles;
  const unsigned long long passed = nanoseconds() - start;
  if (ptx::cluster_rank() == 0 && threadIdx.x == 0) *times = {spent, passed};
  ptx::cluster_sync();  // a block's shared memory may be read until all have arrived
}

__global__ void barriers(Times* times, float*, int) {
  clock_repeats(times, [] { ptx::cluster_sync(); });
}

__device__ float copied[kFloats];

// A barrier while copies of kBytes from L2 are in flight, like those of the next batch in the epoch kernel:
// its fence may have to wait for them. Measures the time from one side of the barrier to the other.
__global__ void barriers_during_copies(Times* times, float*, int) {
  float* mine = ptx::dynamic_shared<float>();
  Times sum = {0, 0};
  for (int i = 0; i < kWarmUps + kRepeats; ++i) {
    for (unsigned at = 4 * threadIdx.x; at < kFloats; at += 4 * kThreads)
      ptx::copy_async<16>(mine + at, copied + at, 16);
    ptx::commit_copies();
    const unsigned long long start = nanoseconds();
    const long long cycles = clock64();
    ptx::cluster_sync();
    if (i >= kWarmUps) sum.cycles += clock64() - cycles, sum.nanoseconds += nanoseconds() - start;
    ptx::wait_copies<0>();
    ptx::cluster_sync();
  }
  if (ptx::cluster_rank() == 0 && threadIdx.x == 0) *times = sum;
}

// Each read depends on the previous one: the value found in the next block is the next address.
__global__ void dependent_reads(Times* times, float* sink, int cluster) {
  int* mine = ptx::dynamic_shared<int>();
  for (int i = threadIdx.x; i < kFloats; i += blockDim.x) mine[i] = (i + 33) % kFloats;
  ptx::cluster_sync();
  const int* there = ptx::map_shared_rank(mine, (ptx::cluster_rank() + 1) % static_cast<unsigned>(cluster));
  int at = static_cast<int>(threadIdx.x);
  clock_repeats(times, [&] { at = read_one(there + at); });
  if (at < 0) *sink = static_cast<float>(at);
}

// All blocks at once read all of the next block's memory, 16 bytes per thread.
__global__ void whole_reads(Times* times, float* sink, int cluster) {
  float* mine = ptx::dynamic_shared<float>();
  for (int i = threadIdx.x; i < kFloats; i += blockDim.x) mine[i] = 1.0f;
  ptx::cluster_sync();
  const float* there = ptx::map_shared_rank(mine, (ptx::cluster_rank() + 1) % static_cast<unsigned>(cluster));
  float sum = 0;
  clock_repeats(times, [&] {
#pragma unroll
    for (unsigned i = 0; i < kFloats; i += 4 * kThreads) {
      const float4 four = read_four(there + i + 4 * threadIdx.x);
      sum += (four.x + four.y) + (four.z + four.w);
    }
    __syncthreads();
  });
  if (sum < 0) *sink = sum;
}

// kSummed floats of all blocks added up, a share by each block in a fixed order, as the epoch kernel adds the
// partial logits; including the two cluster barriers that this takes.
__global__ void sums(Times* times, float* sink, int cluster) {
  float* mine = ptx::dynamic_shared<float>();
  float* result = mine + kSummed;
  for (int i = threadIdx.x; i < kSummed; i += blockDim.x) mine[i] = 1.0f;
  const int share = kSummed / cluster, first = share * static_cast<int>(ptx::cluster_rank());
  clock_repeats(times, [&] {
    ptx::cluster_sync();
    for (int i = threadIdx.x; i < share; i += blockDim.x) {
      float sum = 0;
      for (int rank = 0; rank < cluster; ++rank)
        sum += ptx::map_shared_rank(mine, static_cast<unsigned>(rank))[first + i];
      result[i] = sum;
    }
    ptx::cluster_sync();
  });
  if (static_cast<int>(threadIdx.x) < share && result[threadIdx.x] != static_cast<float>(cluster)) *sink = 1;
}

struct Probe {
  const char* name;
  void (*kernel)(Times*, float*, int);
  unsigned threads;
  double calls;  // what the time of a repeat is divided by
};
constexpr Probe kProbes[] = {
    {"barrier", barriers, kThreads, 1},
    {"barrier during copies", barriers_during_copies, kThreads, 1},
    {"dependent read", dependent_reads, 32, 1},
    {"read of 1 KB", whole_reads, kThreads, kBytes / 1024.0},
    {"sum of 1024 floats", sums, kThreads, 1},
};

// For one cluster of this many blocks; all 0 if the device cannot run it. `sink` must stay 0.
Times run(const Probe& probe, unsigned cluster, float* sink) {
  check(cudaFuncSetAttribute(probe.kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), probe.name);
  check(cudaFuncSetAttribute(probe.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), probe.name);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = cluster;
  config.blockDim = probe.threads;
  config.dynamicSmemBytes = kBytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, probe.kernel, &config) != cudaSuccess || clusters == 0) {
    cudaGetLastError();  // a size that the device does not support
    return {};
  }
  Times* times = nullptr;
  check(cudaMalloc(&times, sizeof(Times)), probe.name);
  check(cudaMemset(times, 0, sizeof(Times)), probe.name);
  check(cudaLaunchKernelEx(&config, probe.kernel, times, sink, static_cast<int>(cluster)), probe.name);
  Times found = {};
  check(cudaMemcpy(&found, times, sizeof(Times), cudaMemcpyDeviceToHost),
        probe.name);  // waits for the kernel
  check(cudaFree(times), probe.name);
  return found;
}

}  // namespace

int main() {
  int device = 0, clusters = 0;
  check(cudaGetDevice(&device), "device");
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "device");
  check(cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device), "device");
  if (clusters == 0) {
    std::printf("%s has no clusters of blocks\n{\"device\": \"%s\", \"clusters\": []}\n", properties.name,
                properties.name);
    return 0;
  }
  float* sink = nullptr;
  check(cudaMalloc(&sink, sizeof(float)), "sink");
  check(cudaMemset(sink, 0, sizeof(float)), "sink");
  std::string json;
  for (const unsigned cluster : {2u, 4u, 8u, 16u}) {
    std::printf("cluster of %2u:", cluster);
    json += (json.empty() ? "" : ", ") + ("{\"blocks\": " + std::to_string(cluster));
    for (const Probe& probe : kProbes) {
      const Times times = run(probe, cluster, sink);
      const double calls = probe.calls * kRepeats;
      const double nanoseconds = static_cast<double>(times.nanoseconds) / calls;
      const double cycles = static_cast<double>(times.cycles) / calls;
      if (times.cycles == 0) {
        std::printf("  %s: no room", probe.name);
        json += std::string(", \"") + probe.name + "\": null";
        continue;
      }
      std::printf("  %s %.1f ns (%.0f cycles)", probe.name, nanoseconds, cycles);
      json += std::string(", \"") + probe.name + "\": {\"ns\": " + std::to_string(nanoseconds) +
              ", \"cycles\": " + std::to_string(cycles) + "}";
    }
    std::printf("\n");
    json += "}";
  }
  float wrong = 0;
  check(cudaMemcpy(&wrong, sink, sizeof(float), cudaMemcpyDeviceToHost), "sink");
  if (wrong != 0) {
    std::fprintf(stderr, "a sum over the blocks of a cluster is wrong\n");
    return 1;
  }
  std::printf("{\"device\": \"%s\", \"clusters\": [%s]}\n", properties.name, json.c_str());
  return 0;
}
