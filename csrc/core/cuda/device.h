// The device side of a call as host code sees it: errors, the current device, what a device has. Plain C++.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace fastnn::cuda {

// Throws std::runtime_error "<op>: CUDA error: ..." unless `status` is success.
void check_cuda(cudaError_t status, const char* op);

// Makes a device current for the life of the object.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = -1;  // or -1 where nothing was changed
};

// What launches are sized by.
struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;  // that one block may ask for
  // The 9 of compute capability 9.0; less where kernels have been compiled for an older device only, and lack
  // what takes a newer one.
  int capability_major;
  // Of a cluster whose blocks have all shared memory of a multiprocessor each: 8, or less where the device
  // has no room for that; 1 where it has no clusters.
  int cluster_blocks;
};

// Of the current device; asked of the driver once.
const DeviceLimits& device_limits();

// Why kernels of this module cannot run on a device, or "". Creates a context there.
std::string why_unusable(int device);

// Whether the driver makes the machine code of kernels when they are first launched on a device: it is newer
// than what they have been compiled for.
bool compiles_at_launch(int device);

// The CUDA version that the driver supports as 1000 * major + 10 * minor; 0 without a driver. Creates no
// context.
int driver_version();

}  // namespace fastnn::cuda
