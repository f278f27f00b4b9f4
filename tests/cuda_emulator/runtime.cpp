// The host's side: one device, number 0, whose memory is the CPU's.
#include <cstdlib>
#include <cstring>
#include <string>

#include "cuda_runtime_api.h"
#include "errors.h"

namespace {

cudaError_t last_error = cudaSuccess;
std::string last_words;

constexpr int kMultiprocessors = 16;  // so few that loops over a grid go round in small tests

}  // namespace

namespace cuda_emulator {

cudaError_t set_error(cudaError_t error, const std::string& words) {
  last_words = words;
  return last_error = error;
}

}  // namespace cuda_emulator

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t) { return last_words.c_str(); }
const char* cudaGetErrorName(cudaError_t) { return "emulated"; }

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : cuda_emulator::set_error(cudaErrorInvalidDevice, "invalid device");
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return *value = kMultiprocessors, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = 9, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = 0, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = cuda_emulator::kMostShared, cudaSuccess;
  }
  return cuda_emulator::set_error(cudaErrorInvalidValue, "unknown attribute");
}

cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  return *memory = std::malloc(bytes), cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  return std::memset(memory, value, bytes), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
