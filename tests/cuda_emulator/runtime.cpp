// The host's side: devices whose memory is the CPU's.
#include <array>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cuda_runtime_api.h"
#include "errors.h"
#include "scheduler.h"

namespace {

cudaError_t last_error = cudaSuccess;
std::string last_words;

constexpr int kSharedBytes = 227 * 1024;

// Like an H100, with so few multiprocessors that grid-stride loops iterate in small tests; with so little
// shared memory that short rows exceed it; the same without clusters; the same with them, but with kernels
// compiled for a device without; and one that does not report its limits.
constexpr cuda_emulator::Device kSpecial[] = {{16, 9, kSharedBytes, 90},
                                              {4, 9, 16 * 1024, 90},
                                              {4, 8, 16 * 1024, 80},
                                              {4, 9, 16 * 1024, 80},
                                              {0, 0, 0, 90}};
constexpr int kSpecials = sizeof(kSpecial) / sizeof(kSpecial[0]);
// After those one of each size: 16, 18, ... 104, 108, ... 160 multiprocessors.
constexpr int kDeviceCount = 64;
const std::array<cuda_emulator::Device, kDeviceCount> kDevices = [] {
  std::array<cuda_emulator::Device, kDeviceCount> devices = {};
  for (int i = 0, multiprocessors = 16; i < kDeviceCount; ++i) {
    if (i < kSpecials) {
      devices[i] = kSpecial[i];
      continue;
    }
    devices[i] = {multiprocessors, 9, kSharedBytes, 90};
    multiprocessors += multiprocessors < 104 ? 2 : 4;
  }
  return devices;
}();
int current_device = 0, holder_of_tensors = 0;
const void* hidden = nullptr;
cudaError_t capture_answer = cudaSuccess;
cudaStreamCaptureStatus capture_status = cudaStreamCaptureStatusNone;
void (*at_wait)() = [] {};

}  // namespace

namespace cuda_emulator {

const Device& device() { return kDevices[current_device]; }

int ptx_version() { return device().ptx_version; }
int binary_version() { return 10 * device().capability_major; }

void set_capturing(cudaError_t answer, cudaStreamCaptureStatus status) {
  capture_answer = answer;
  capture_status = status;
}

void on_wait(void (*call)()) { at_wait = call; }

void put_tensors_on(int device) { holder_of_tensors = device; }

int device_of_tensors() { return holder_of_tensors; }

void hide_from_host(const void* memory) { hidden = memory; }

bool is_hidden(const void* memory) { return hidden && memory == hidden; }

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

cudaError_t cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDeviceCount)
    return cuda_emulator::set_error(cudaErrorInvalidDevice, "invalid device");
  return current_device = device, cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (!kDevices[device].multiprocessors) return cuda_emulator::set_error(cudaErrorInvalidValue, "no answer");
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return *value = kDevices[device].multiprocessors, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = kDevices[device].capability_major, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = 0, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = kDevices[device].shared_bytes, cudaSuccess;
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
  *status = capture_status;
  return capture_answer == cudaSuccess ? cudaSuccess : cuda_emulator::set_error(capture_answer, "no capture");
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return at_wait(), cudaSuccess; }
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
