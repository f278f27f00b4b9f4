// What the host's calls and the scheduler share.
#pragma once

#include <string>

#include "cuda_runtime_api.h"

namespace cuda_emulator {

constexpr int kMostShared = 227 * 1024;  // bytes of one block, as on an H100

// Keeps the error for cudaGetLastError and its words for cudaGetErrorString; returns it.
cudaError_t set_error(cudaError_t error, const std::string& words);

}  // namespace cuda_emulator
