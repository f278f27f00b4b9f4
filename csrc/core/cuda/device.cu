#include "core/cuda/device.h"

#include <mutex>
#include <stdexcept>

#include "core/cuda/launch.cuh"

namespace fastnn::cuda {

namespace {

__global__ void probe() {}

constexpr int kMaxDevices = 64;

int ask(cudaDeviceAttr attribute, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "fastnn");
  return value;
}

cudaFuncAttributes attributes_of_kernels() {
  cudaFuncAttributes attributes;
  check_cuda(cudaFuncGetAttributes(&attributes, probe), "fastnn");
  return attributes;
}

// The major capability that kernels have been compiled for, if that is less than the device's: code for 8
// also runs on 9, and there takes its own branches of `#if __CUDA_ARCH__`.
int usable_capability(int device) {
  const int compiled = attributes_of_kernels().ptxVersion / 10;
  const int present = ask(cudaDevAttrComputeCapabilityMajor, device);
  return compiled < present ? compiled : present;
}

int largest_cluster(const DeviceLimits& limits) {
  constexpr int kPortable = 8, kThreads = 1024;  // the cluster size that every device with clusters supports
  if (limits.capability_major < 9) return 1;
  check_cuda(cudaFuncSetAttribute(probe, cudaFuncAttributeMaxDynamicSharedMemorySize, limits.shared_bytes),
             "fastnn");
  int blocks = kPortable;
  while (blocks > 1 && most_clusters(probe, static_cast<unsigned>(blocks), kThreads,
                                     static_cast<size_t>(limits.shared_bytes)) == 0)
    blocks /= 2;
  return blocks;
}

}  // namespace

void check_cuda(cudaError_t status, const char* op) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that is reported must not be found again by a later check
  throw std::runtime_error(std::string(op) + ": CUDA error: " + cudaGetErrorString(status) + " (" +
                           cudaGetErrorName(status) + ")");
}

DeviceGuard::DeviceGuard(int device) {
  int current = -1;
  check_cuda(cudaGetDevice(&current), "fastnn");
  if (current == device) return;
  check_cuda(cudaSetDevice(device), "fastnn");
  previous_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

const DeviceLimits& device_limits() {
  static DeviceLimits limits[kMaxDevices];
  static std::once_flag asked[kMaxDevices];
  int device = 0;
  check_cuda(cudaGetDevice(&device), "fastnn");
  if (device >= kMaxDevices) throw std::runtime_error("fastnn: device " + std::to_string(device));
  std::call_once(asked[device], [device] {
    DeviceLimits& found = limits[device];
    found.multiprocessors = ask(cudaDevAttrMultiProcessorCount, device);
    found.shared_bytes = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    found.capability_major = usable_capability(device);
    found.cluster_blocks = largest_cluster(found);
  });
  return limits[device];
}

std::string why_unusable(int device) {
  try {
    const DeviceGuard guard(device);
    device_limits();  // also looks for code that runs there; otherwise ops would raise without limits
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

bool compiles_at_launch(int device) {
  const DeviceGuard guard(device);
  const cudaFuncAttributes attributes = attributes_of_kernels();
  return attributes.binaryVersion != attributes.ptxVersion;
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace fastnn::cuda
