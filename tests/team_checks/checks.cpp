// What kernels do on a team of threads, repeated many times: share ranges and memory, wait for each other,
// fail.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#include "core/barrier.h"
#include "core/parallel.h"

using namespace fastnn;
using fastnn::checked::parallel_for;

namespace {

constexpr int64_t kMembers = 4, kElements = 1000;
constexpr int kRounds = 300;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "team_checks: %s\n", what);
  std::exit(1);
}

// Runs code() on a team whose members are threads of the standard library, the caller the first of them.
template <class Code>
bool run(const Code& code) {
  Team team;
  std::vector<std::thread> others;
  for (int64_t i = 1; i < kMembers; ++i)
    others.emplace_back([&, i] { TeamMember(team, i, kMembers).run(code); });
  TeamMember(team, 0, kMembers).run(code);
  for (std::thread& other : others) other.join();
  return !team.failed();
}

// Each parallel_for reads what the previous one wrote, at other indices.
void steps_follow_each_other() {
  std::vector<int64_t> a(kElements, 1), b(kElements);
  const bool done = run([&] {
    for (int round = 0; round < kRounds; ++round) {
      parallel_for(kElements, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) b[i] = a[kElements - 1 - i] + 1;
      });
      parallel_for(kElements, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) a[i] = b[(i + kElements / 2) % kElements];
      });
    }
  });
  expect(done && a.front() == kRounds + 1 && a.back() == kRounds + 1, "a step saw old values");
}

// All members get the same memory, also while it grows, and one writes what one thread writes.
void memory_is_shared() {
  int64_t sum = 0;
  const bool done = run([&] {
    for (int64_t round = 1; round <= kRounds; ++round) {
      auto* partial =
          static_cast<int64_t*>(shared_scratch(Scratch{}, sizeof(int64_t) * (kElements + 64 * round)));
      parallel_for(kElements, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) partial[i] = round;
      });
      if (leads_team())
        for (int64_t i = 0; i < kElements; ++i) sum += partial[i];
      wait_for_team();
    }
  });
  expect(done && sum == kElements * kRounds * (kRounds + 1) / 2, "the sum of shared memory is wrong");
}

// If one member runs out of memory all of them leave, and the next team starts over.
void a_failure_ends_the_team() {
  for (int round = 0; round < kRounds / 10; ++round) {
    const bool done = run([&] {
      parallel_for(kElements, 1, [&](int64_t begin, int64_t) {
        if (begin > 0) throw std::bad_alloc();
      });
      expect(false, "a failed team went on");
    });
    expect(!done, "a failure was not told");
  }
}

// One of them arrives after the others' patience has run out.
void late_members_are_waited_for() {
  Barrier barrier;
  std::vector<int> came(kMembers);
  std::vector<std::thread> threads;
  for (int64_t me = 0; me < kMembers; ++me)
    threads.emplace_back([&, me] {
      for (int round = 1; round <= 20; ++round) {
        if (round % kMembers == me) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        came[me] = round;
        barrier.wait(kMembers);
        for (const int other : came) expect(other == round, "a barrier let one pass too early");
        barrier.wait(kMembers);
      }
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main() {
  steps_follow_each_other();
  memory_is_shared();
  a_failure_ends_the_team();
  late_members_are_waited_for();
  std::puts("team_checks: all passed");
}
