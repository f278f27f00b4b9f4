// Probes of what the machine can do, for benchmarks to measure against, and of how threads wait.
//   fma   every thread runs `rounds` rounds of independent x = x * a + b chains in the widest vectors of the
//         variant; returns the floating-point operations done, an FMA counted as two. `out` (one element,
//         float32 or float64) receives a value that depends on every chain.
//   copy  dst = src, `bytes` long, split between the threads; the C library streams past the cache where
//         that is faster
//   late  the last of a region's threads, or of a team's in each of at most `pieces` pieces, arrives
//         `nanoseconds` late; returns how many threads and how many pieces there were
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastnn {

struct LateProbe {
  int64_t threads, pieces;
};

struct ProbeKernels {
  int64_t (*fma)(DType dtype, int64_t rounds, void* out);
  void (*copy)(const void* src, void* dst, int64_t bytes);
  LateProbe (*late)(bool team, int64_t pieces, int64_t nanoseconds);
};

namespace FASTNN_ISA {
ProbeKernels probe_kernels();
}

}  // namespace fastnn
