#include "core/barrier.h"

#include <thread>

#include "core/oversubscription.h"

namespace fastnn {

namespace {

// How long a wait may take before the thread sleeps, in ns. A thread that is late only because of its share
// of the work arrives sooner; waking a sleeper takes some tens of microseconds.
constexpr int64_t kPatience = 100'000;
// About a microsecond, after which the processor is yielded each time: the awaited thread may be queued for
// it.
constexpr int kPauses = 16;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

int64_t Barrier::wait(int64_t count) {
  const uint32_t generation = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < count) {
    int64_t began = 0;
    if (!spin(generation, began)) sleep(generation);
    return began ? clock_ns() - began : 0;
  }
  arrived_.store(0, std::memory_order_relaxed);
  // Totally ordered with sleep(): either it sees the new generation, or the sleeper is seen here.
  generation_.store(generation + 1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) == 0) return 0;
  const std::lock_guard<std::mutex> lock(mutex_);
  woken_.notify_all();
  return 0;
}

bool Barrier::spin(uint32_t generation, int64_t& began) const {
  for (;;) {
    for (int i = 0; i < kPauses; ++i) {
      if (generation_.load(std::memory_order_acquire) != generation) return true;
      pause();
    }
    const int64_t now = clock_ns();
    if (!began) began = now;
    if (now - began >= kPatience) return false;
    std::this_thread::yield();
  }
}

void Barrier::sleep(uint32_t generation) {
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  {
    std::unique_lock<std::mutex> lock(mutex_);
    woken_.wait(lock, [&] { return generation_.load(std::memory_order_seq_cst) != generation; });
  }
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace fastnn
