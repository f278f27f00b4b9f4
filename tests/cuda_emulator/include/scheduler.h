// Runs the threads of a kernel on one thread of the CPU, as fibers that are switched where they wait for each
// other. The order in which they run can be chosen: a kernel without a race gives the same bits in every
// order.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <functional>
#include <type_traits>
#include <vector>

#include "cuda_runtime_api.h"

namespace cuda_emulator {

enum class Order {
  forward,
  reverse,
  warps,    // warps in random order, their lanes forward
  threads,  // all threads in random order, interleaved; in the other orders a warp runs until it must wait
};
// Order of the blocks of a grid and the threads of a block, from the next launch on.
void set_order(Order order, unsigned seed);

// Kernels launched so far, and the shape of the last one.
struct LaunchShape {
  unsigned clusters, blocks, threads;  // in the x dimension; blocks of a cluster, threads of a block
  size_t shared_bytes;
};
long launches();
LaunchShape last_launch();

// With `noting`, kernels are only recorded and do not run: to see what is launched without waiting for it.
void only_note(bool noting);
// The kernels recorded since the last call, in order.
std::vector<const void*> take_noted();

// Selects the device of runtime.cpp for tensors of the CPU.
void put_tensors_on(int device);
int device_of_tensors();

// Makes memory on a device unreadable for the host: that at one address.
void hide_from_host(const void* memory);
bool is_hidden(const void* memory);

// Sets the result of cudaStreamIsCapturing.
void set_capturing(cudaError_t answer, cudaStreamCaptureStatus status);

// Sets a function to be called whenever the host waits for a stream.
void on_wait(void (*call)());

// The version for which the kernels have been compiled on the current device, before it was known and after,
// as in cudaFuncAttributes.
int ptx_version();
int binary_version();

// Ends the launch with an error; called by a running kernel.
[[noreturn]] void fail(const char* message);

// Waits for all threads of the block, of the cluster. A thread that has exited is missing: an error. For the
// block, returns whether any thread passed true.
bool sync_block(bool mine = false);
void sync_cluster();

int lane();       // in its warp, of the running thread
size_t thread();  // its index among all concurrent ones: those of a block, or of a cluster of blocks
unsigned cluster_rank();
// Dynamic shared memory of the running block, and of another block of its cluster. It holds NaN at first.
unsigned char* dynamic_shared();
unsigned char* dynamic_shared_of(unsigned rank);

constexpr size_t kExchangeBytes = 128;  // that one lane may contribute
// Waits for all lanes of the mask, which must have come to an exchange of the same name. `all` gets 32 times
// `bytes`.
void exchange_bytes(const char* name, unsigned mask, const void* mine, size_t bytes, void* all);

// The contributions of all lanes of the mask; the basis for emulating warp-wide instructions.
template <class T>
std::array<T, 32> exchange(const char* name, unsigned mask, const T& mine) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kExchangeBytes);
  std::array<T, 32> all;
  exchange_bytes(name, mask, &mine, sizeof(T), all.data());
  return all;
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value);

// How many clusters of such a launch run at a time: 0 if it is invalid.
int active_clusters(const cudaLaunchConfig_t& config, const void* kernel);

// Runs `body` once for each thread; `parameter_bytes` is the size of the kernel's parameters.
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, size_t parameter_bytes,
                   const std::function<void()>& body);

}  // namespace cuda_emulator
