// emulator_checks: the order that the emulator uses, and deliberately right or wrong kernels
// (tests/test_cuda_emulator.py).
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>

#include "core/cuda/launch.cuh"
#include "core/cuda/ptx.cuh"
#include "scheduler.h"

namespace py = pybind11;
using namespace fastnn::cuda;

namespace {

constexpr unsigned kAll = 0xffffffffu;

// out[i] = values[n - 1 - i], through shared memory.
__global__ void reverse_block(const float* values, float* out, bool wait) {
  float* shared = ptx::dynamic_shared<float>();
  const unsigned i = threadIdx.x, n = blockDim.x;
  shared[i] = values[i];
  if (wait) __syncthreads();
  out[i] = shared[n - 1 - i];
}

__global__ void sum_warp(const float* values, float* out, bool wait) {
  float* shared = ptx::dynamic_shared<float>();
  const unsigned i = threadIdx.x;
  shared[i] = values[i];
  if (wait) __syncwarp();
  float sum = shared[i] + shared[i ^ 1];
  for (int step = 2; step < kWarp; step *= 2) sum += __shfl_xor_sync(kAll, sum, step);
  out[i] = sum;
}

__global__ void some_wait(unsigned waiting) {
  if (threadIdx.x < waiting) __syncthreads();
}

__global__ void lanes_part() {
  if (threadIdx.x % kWarp < 16)
    __syncwarp();
  else
    __shfl_xor_sync(kAll, 1, 1);
}

__global__ void warps_part() {
  if (threadIdx.x < kWarp)
    __syncthreads();
  else if (threadIdx.x % kWarp != 0)
    __syncwarp();
}

__global__ void write_shared(unsigned index) { ptx::dynamic_shared<float>()[index] = 1; }

__global__ void read_pack(const float* values, float* out) {
  out[0] = reinterpret_cast<const float4*>(values)->x;
}

__global__ void index_array(int index, float* out) {
  float values[4] = {1, 2, 3, 4};
  out[0] = values[index];
}

// Each block adds the values of all blocks of its cluster. Block 1 may exit before the others have read it.
__global__ void sum_cluster(float* out, bool wait) {
  float* shared = ptx::dynamic_shared<float>();
  shared[threadIdx.x] = static_cast<float>(blockIdx.x);
  ptx::cluster_sync();
  if (!wait && ptx::cluster_rank() == 1) return;
  float sum = 0;
  for (unsigned rank = 0; rank < 4; ++rank) sum += ptx::map_shared_rank(shared, rank)[threadIdx.x];
  if (wait) ptx::cluster_sync();
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum + static_cast<float>(ptx::cluster_rank());
}

struct Large {
  char bytes[4097];
};
__global__ void take(Large) {}
__global__ void nothing() {}

// Waits of the host since the last query, and in how many of them it held the GIL.
int waits = 0, waits_with_gil = 0;
void note_wait() {
  ++waits;
  waits_with_gil += PyGILState_Check();
}

float* at(uintptr_t address) { return reinterpret_cast<float*>(address); }

}  // namespace

PYBIND11_MODULE(emulator_checks, m) {
  using cuda_emulator::Order;
  m.def("set_order", [](const std::string& name, unsigned seed) {
    if (name == "forward") return cuda_emulator::set_order(Order::forward, seed);
    if (name == "reverse") return cuda_emulator::set_order(Order::reverse, seed);
    if (name == "warps") return cuda_emulator::set_order(Order::warps, seed);
    if (name == "threads") return cuda_emulator::set_order(Order::threads, seed);
    throw std::invalid_argument("no order " + name);
  });
  m.def("launches", &cuda_emulator::launches);
  m.def("last_launch", [] {
    const auto [clusters, blocks, threads, shared_bytes] = cuda_emulator::last_launch();
    return py::make_tuple(clusters, blocks, threads, shared_bytes);
  });
  m.def("set_capturing", [](int answer, bool active) {
    cuda_emulator::set_capturing(static_cast<cudaError_t>(answer),
                                 active ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone);
  });
  m.def("last_error", [] { return static_cast<int>(cudaGetLastError()); });
  cuda_emulator::on_wait(note_wait);
  m.def("take_waits",
        [] { return py::make_tuple(std::exchange(waits, 0), std::exchange(waits_with_gil, 0)); });
  m.def("only_note", &cuda_emulator::only_note);
  m.def("take_noted", [] {
    py::list places;  // file offsets of the kernels in their module
    for (const void* kernel : cuda_emulator::take_noted()) {
      Dl_info module = {};
      dladdr(kernel, &module);
      places.append(static_cast<const char*>(kernel) - static_cast<const char*>(module.dli_fbase));
    }
    return places;
  });
  m.def("hide_from_host", [](uintptr_t address) { cuda_emulator::hide_from_host(at(address)); });
  m.def("put_tensors_on", &cuda_emulator::put_tensors_on);
  m.def("reverse_block", [](uintptr_t values, uintptr_t out, unsigned n, bool wait) {
    launch("check", reverse_block, 1, n, n * sizeof(float), nullptr, at(values), at(out), wait);
  });
  m.def("sum_warp", [](uintptr_t values, uintptr_t out, bool wait) {
    launch("check", sum_warp, 1, kWarp, kWarp * sizeof(float), nullptr, at(values), at(out), wait);
  });
  m.def("some_wait", [](unsigned waiting) { launch("check", some_wait, 1, 64, 0, nullptr, waiting); });
  m.def("lanes_part", [] { launch("check", lanes_part, 1, kWarp, 0, nullptr); });
  m.def("warps_part", [] { launch("check", warps_part, 1, 64, 0, nullptr); });
  m.def("write_shared", [](unsigned index) { launch("check", write_shared, 1, 1, 256, nullptr, index); });
  m.def("read_pack", [](uintptr_t values, uintptr_t out) {
    launch("check", read_pack, 1, 1, 0, nullptr, at(values), at(out));
  });
  m.def("index_array",
        [](int index, uintptr_t out) { launch("check", index_array, 1, 1, 0, nullptr, index, at(out)); });
  m.def("sum_cluster", [](uintptr_t out, bool wait) {
    launch_clusters("check", sum_cluster, 4, 8, 32, 128, nullptr, at(out), wait);
  });
  m.def("large_parameters", [] { launch("check", take, 1, 1, 0, nullptr, Large{}); });
  m.def("shape", [](unsigned blocks, unsigned threads, size_t shared_bytes, unsigned cluster) {
    launch_clusters("check", nothing, cluster, blocks, threads, shared_bytes, nullptr);
  });
}
