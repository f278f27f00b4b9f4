// A barrier at which waiting threads do not keep the processor from the thread they wait for.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace fastnn {

// OpenMP's own barrier spins for milliseconds. If another process also uses the processors, the awaited
// thread may be the one without a processor. This barrier yields.
class Barrier {
 public:
  // Returns when `count` threads have called it; the result is how long that took, in ns, not counting the
  // first microsecond.
  int64_t wait(int64_t count);

 private:
  bool spin(uint32_t generation, int64_t& began) const;
  void sleep(uint32_t generation);

  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};  // how often all have arrived, modulo 2^32
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable woken_;
};

}  // namespace fastnn
