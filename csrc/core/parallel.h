// Threads: one OpenMP pool, shared with torch (both bind to the libgomp that torch loaded).
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastnn {

// Number of threads a region of this caller may use: torch.set_num_threads is honoured, and a forked child
// stays on one thread, because the pool's threads do not survive a fork and waiting for them would never end.
int max_threads();

// Throws std::bad_alloc, which becomes Python's MemoryError.
[[noreturn]] void throw_out_of_memory();

namespace FASTNN_ISA {

// Calls body(begin, end) on disjoint ranges that cover [0, n), on at most n / grain threads. How the range is
// cut depends on the thread count, so body must not let an element's value depend on its range.
template <class Body>
inline void parallel_for(int64_t n, [[maybe_unused]] int64_t grain, const Body& body) {
  if (n <= 0) return;
#ifdef _OPENMP
  const int64_t wanted = grain > 0 ? n / grain : n;
  const int64_t threads = wanted < 2 ? 1 : (wanted < max_threads() ? wanted : max_threads());
  if (threads > 1 && !omp_in_parallel()) {
    bool out_of_memory = false;
#pragma omp parallel num_threads(static_cast<int>(threads)) reduction(|| : out_of_memory)
    {
      const int64_t count = omp_get_num_threads(), me = omp_get_thread_num();
      const int64_t begin = n * me / count, end = n * (me + 1) / count;
      // An exception that left the region would end the process. Scratch memory is all that can fail in a
      // kernel.
      try {
        if (begin < end) body(begin, end);
      } catch (...) {
        out_of_memory = true;
      }
    }
    if (out_of_memory) throw_out_of_memory();
    return;
  }
#endif
  body(int64_t{0}, n);
}

}  // namespace FASTNN_ISA
}  // namespace fastnn
