// What the host's calls and the scheduler share.
#pragma once

#include <string>

#include "cuda_runtime_api.h"

namespace cuda_emulator {

// What a device has.
struct Device {
  int multiprocessors, capability_major;
  int shared_bytes;  // of one block
  int ptx_version;   // that kernels have been compiled for, as cudaFuncAttributes has it
};
// The current one.
const Device& device();

// Keeps the error for cudaGetLastError and its words for cudaGetErrorString; returns it.
cudaError_t set_error(cudaError_t error, const std::string& words);

}  // namespace cuda_emulator
