// Marks a function that CPU kernels and CUDA kernels share: inlined in both.
#pragma once

#if defined(__CUDACC__)
#define FASTNN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTNN_HOST_DEVICE inline __attribute__((always_inline))
#endif
