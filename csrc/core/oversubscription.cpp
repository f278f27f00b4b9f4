#include "core/oversubscription.h"

#include <atomic>
#include <chrono>

namespace fastnn {

namespace {

// Work is short below this: some milliseconds of one thread.
constexpr int64_t kShort = int64_t{1} << 22;
// About what one thread takes for an operation: 0.2 ns where it is 16 multiply-adds in AVX-512, 0.5 in AVX2.
constexpr int64_t kOperationsPerNs = 2;
// What any thread may be late by where nothing else runs: waking it, interrupts.
constexpr int64_t kLate = 1'000'000;
// How long to work alone, in times of what was waited: trying again then costs a sixteenth.
constexpr int64_t kPenance = 16;

std::atomic<bool> noticed{true};
thread_local Work* current = nullptr;
thread_local int64_t alone_until = 0;

}  // namespace

int64_t clock_ns() {
  using std::chrono::steady_clock;
  return std::chrono::duration_cast<std::chrono::nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

Work::Work(int64_t operations) : operations_(operations) {
  current = this;
  alone_ = alone_until != 0 && operations < kShort && noticed.load(std::memory_order_relaxed) &&
           clock_ns() < alone_until;
}

Work::~Work() {
  current = nullptr;
  if (operations_ < kShort && waited_ > kLate + operations_ / kOperationsPerNs)
    alone_until = clock_ns() + kPenance * waited_;
}

void notice_oversubscription(bool on) { noticed.store(on, std::memory_order_relaxed); }

bool works_alone() { return current && current->alone_; }

void note_wait(int64_t nanoseconds) {
  if (current) current->waited_ += nanoseconds;
}

}  // namespace fastnn
