// Where threads wait for each other without keeping a processor from the one they wait for.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace fastnn {

// OpenMP's own barrier spins for milliseconds. Where another process wants the processors too, the thread
// that is waited for may be the one that has none. This one gives way.
class Barrier {
 public:
  // Returns when `count` threads have called it, each of them; how long that took, in ns, but for the first
  // microsecond.
  int64_t wait(int64_t count);

 private:
  bool spin(uint32_t generation, int64_t& began) const;
  void sleep(uint32_t generation);

  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};  // how often everyone has come, modulo 2^32
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable woken_;
};

}  // namespace fastnn
