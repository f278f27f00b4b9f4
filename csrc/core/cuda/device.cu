#include "core/cuda/device.h"

#include <mutex>
#include <stdexcept>

namespace fastnn::cuda {

namespace {

__global__ void probe() {}

constexpr int kMaxDevices = 64;

}  // namespace

void check_cuda(cudaError_t status, const char* op) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that is told must not be found again by somebody else's check
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
    check_cuda(cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount, device),
               "fastnn");
    check_cuda(cudaDeviceGetAttribute(&found.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
               "fastnn");
  });
  return limits[device];
}

std::string why_unusable(int device) {
  try {
    const DeviceGuard guard(device);
    cudaFuncAttributes attributes;
    check_cuda(cudaFuncGetAttributes(&attributes, probe), "fastnn");
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace fastnn::cuda
