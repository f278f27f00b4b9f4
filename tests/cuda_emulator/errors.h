// Shared by the host's calls and the scheduler.
#pragma once

#include <string>

#include "cuda_runtime_api.h"

namespace cuda_emulator {

// The properties of a device.
struct Device {
  int multiprocessors, capability_major;
  int shared_bytes;  // of one block
  int ptx_version;   // for which kernels have been compiled, as in cudaFuncAttributes
};
// The current device.
const Device& device();

// Stores the error for cudaGetLastError and its text for cudaGetErrorString; returns it.
cudaError_t set_error(cudaError_t error, const std::string& words);

}  // namespace cuda_emulator
