#include "ops/probe/probe.h"

#include "core/parallel.h"
#include "core/simd.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Enough chains to hide the latency of an FMA on every port: 4 or 5 cycles on 2 ports (x86), 4 cycles on 4
// ports (the widest Arm cores); no more than fit in the registers with the two factors.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kChains = 20;  // of 32 registers
#else
constexpr int kChains = 12;  // of 16 registers
#endif

// One streaming thread moves about 10 bytes a nanosecond: below this size a second thread does not pay off.
constexpr int64_t kCopyGrain = int64_t{1} << 18;

// A factor just below 1 and the matching summand keep every chain near 1: no overflow, no subnormal.
template <class T>
T run_chains(int64_t rounds) {
  volatile double factor = 0.999, summand = 0.001;  // volatile: the compiler must not know them
  const Vec<T> a = splat(static_cast<T>(factor)), b = splat(static_cast<T>(summand));
  Vec<T> x[kChains];
  for (int c = 0; c < kChains; ++c) x[c] = splat(static_cast<T>(c));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 32
    for (int c = 0; c < kChains; ++c) x[c] = x[c] * a + b;
  }
  for (int c = 1; c < kChains; ++c) x[0] += x[c];
  return sum(x[0]);
}

template <class T>
int64_t fma(int64_t rounds, T* out) {
  const int threads = max_threads();
  parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T value = run_chains<T>(rounds);
      if (i == 0) *out = value;
    }
  });
  return 2 * rounds * kChains * kLanes<T> * threads;
}

int64_t probe_fma(DType dtype, int64_t rounds, void* out) {
  return dtype == DType::f64 ? fma(rounds, static_cast<double*>(out)) : fma(rounds, static_cast<float*>(out));
}

void probe_copy(const void* src, void* dst, int64_t bytes) {
  parallel_for(bytes, kCopyGrain, [&](int64_t begin, int64_t end) {
    __builtin_memcpy(static_cast<char*>(dst) + begin, static_cast<const char*>(src) + begin,
                     static_cast<size_t>(end - begin));
  });
}

LateProbe late(bool team, int64_t pieces, int64_t nanoseconds) {
  const int64_t threads = max_threads();
  const auto come_late = [&] {
    parallel_for(threads, 1, [&](int64_t, int64_t end) {
      const int64_t until = clock_ns() + nanoseconds;
      while (end == threads && clock_ns() < until) {
      }
    });
  };
  int64_t done = 1;
  if (team)
    run_pieces(threads, come_late, [&] { return done < pieces && ++done > 0; });
  else
    come_late();
  return {threads, done};
}

}  // namespace

ProbeKernels probe_kernels() { return {probe_fma, probe_copy, late}; }

}  // namespace fastnn::FASTNN_ISA
