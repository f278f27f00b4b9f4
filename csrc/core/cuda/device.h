// The device side of a call as host code sees it: errors, the current device, the limits of a device. Plain
// C++.
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
  int previous_ = -1;  // or -1 if nothing was changed
};

// The limits that determine launch sizes.
struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;  // that one block may ask for
  // The 9 of compute capability 9.0; less if the kernels have been compiled only for an older device, without
  // the features of a newer one.
  int capability_major;
  // Cluster size if each block has all shared memory of a multiprocessor: 8, or less if that does not fit on
  // the device; 1 if it has no clusters.
  int cluster_blocks;
};

// Of the current device; queried from the driver once.
const DeviceLimits& device_limits();

// Why kernels of this module cannot run on a device, or "". Creates a context there.
std::string why_unusable(int device);

// Whether the driver compiles the machine code of kernels when they are first launched on a device, because
// it is newer than what they have been compiled for.
bool compiles_at_launch(int device);

// The CUDA version that the driver supports as 1000 * major + 10 * minor; 0 without a driver. Creates no
// context.
int driver_version();

}  // namespace fastnn::cuda
