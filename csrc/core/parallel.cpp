#include "core/parallel.h"

#include <atomic>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fastnn {

namespace {

std::atomic<bool> in_forked_child{false};

#if defined(__unix__) || defined(__APPLE__)
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });
#endif

}  // namespace

int max_threads() {
  if (const int64_t members = team_threads()) return static_cast<int>(members);
  if (works_alone()) return 1;
#ifdef _OPENMP
  return in_forked_child.load(std::memory_order_relaxed) ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

void throw_out_of_memory() { throw std::bad_alloc(); }

}  // namespace fastnn
