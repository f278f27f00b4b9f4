#include "core/oversubscription.h"

#include <atomic>
#include <chrono>

namespace fastnn {

namespace {

// Work is short below this: ten milliseconds of one thread at most.
constexpr int64_t kShort = int64_t{1} << 24;
// About what one thread takes for an operation: 0.2 ns if it is 16 multiply-adds in AVX-512, 0.5 in AVX2.
constexpr int64_t kOperationsPerNs = 2;
// How late any thread may be even if nothing else runs: waking it, interrupts.
constexpr int64_t kLate = 1'000'000;
// How long to work alone, as a multiple of the wait: retrying then costs a sixteenth.
constexpr int64_t kPenance = 16;

std::atomic<bool> noticed{true};
thread_local Work* current = nullptr;
thread_local int64_t alone_until = 0;

bool must_be_alone() {
  return alone_until != 0 && noticed.load(std::memory_order_relaxed) && clock_ns() < alone_until;
}

}  // namespace

int64_t clock_ns() {
  using std::chrono::steady_clock;
  return std::chrono::duration_cast<std::chrono::nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

Work::Work(int64_t operations) : operations_(operations) {
  current = this;
  alone_ = operations < kShort && must_be_alone();
}

Work::~Work() {
  current = nullptr;
  judge(waited_);
}

void Work::judge(int64_t waited) {
  if (operations_ >= kShort) return;
  unjudged_ += operations_;
  const int64_t wait = waited - judged_wait_;
  const bool late = wait > kLate + unjudged_ / kOperationsPerNs;
  if (late) alone_until = clock_ns() + kPenance * wait;
  if (!late && unjudged_ < kShort) return;
  judged_wait_ = waited;
  unjudged_ = 0;
}

void notice_oversubscription(bool on) { noticed.store(on, std::memory_order_relaxed); }

bool works_alone() { return current && current->alone_; }

bool next_piece(int64_t waited) {
  if (!current || current->operations_ >= kShort) return true;
  current->judge(waited);
  return current->alone_ == must_be_alone();
}

void note_wait(int64_t nanoseconds) {
  if (current) current->waited_ += nanoseconds;
}

}  // namespace fastnn
