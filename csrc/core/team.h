// Teams: the threads of one parallel region that all run the same code (single program, multiple data). The
// cost of a region is then paid once for a sequence of kernels, plus a barrier for each step of it.
//
// Code that may run on a team does its work inside parallel_for, keeps what the members share in
// shared_scratch, and writes results outside of parallel_for only if leads_team() is true. If it reads
// shared_scratch outside of parallel_for it calls wait_for_team() afterwards: otherwise a faster member could
// already be filling it for the next step.
#pragma once

#include <atomic>
#include <cstdint>

#include "core/scratch.h"

// This header is part of every instruction set's kernels: what it defines here must be a template over the
// kernel's own type, or the linker could keep one set's copy for all (simd.h).

namespace fastnn {

// Number of threads a region of this caller may use: torch.set_num_threads is respected, and a forked child
// stays on one thread, because the pool's threads do not survive a fork and waiting for them would never end.
// On a team: its size; and 1 inside the body of its parallel_for.
int max_threads();

class Barrier;

// State shared by the members of a team. The thread that makes it leads it.
class Team {
 public:
  Team();
  bool failed() const;
  void fail();
  // Nanoseconds that the members have waited for a single late one; less if several were late.
  int64_t waited() const;

 private:
  friend class TeamMember;
  std::atomic<bool> failed_{false};
  std::atomic<int64_t> waited_{0};
  Barrier* const barrier_;            // the leader's
  ScratchBuffer* scratch_ = nullptr;  // the leader's
};

// A thread of a team, for the lifetime of the object.
class TeamMember {
 public:
  TeamMember(Team& team, int64_t index, int64_t count);
  ~TeamMember();
  TeamMember(const TeamMember&) = delete;
  TeamMember& operator=(const TeamMember&) = delete;

  // A member that ran out of memory in its share still arrives at the barrier, and all of them leave the code
  // there together.
  template <class Share>
  void run_share(const Share& share) {
    sharing_ = true;
    try {
      share();
    } catch (...) {
      team_.fail();
    }
    sharing_ = false;
    meet();
  }

  template <class Code>
  void run(const Code& code) {
    try {
      code();
    } catch (...) {
      team_.fail();
    }
  }

  // Memory that all members see, at least `bytes` long.
  void* shared(Scratch slot, size_t bytes);

  const int64_t index;
  const int64_t count;

 private:
  friend TeamMember* team_member();
  friend int64_t team_threads();
  friend int64_t team_waited();
  friend void wait_for_team();

  void barrier();
  // Waits for all members; throws on each of them if one has failed.
  void meet();

  Team& team_;
  bool sharing_ = false;
};

// The calling thread's place in a team; null outside of teams and inside the body of a parallel_for.
TeamMember* team_member();

// max_threads() of a caller on a team, else 0.
int64_t team_threads();

// Team::waited() of the caller's team, in the body of a parallel_for too; 0 outside of teams.
int64_t team_waited();

// Whether the caller should write what one thread writes: the first member of a team, or a thread without
// one.
bool leads_team();

// Returns when every member of the team has arrived.
void wait_for_team();

// Like thread_scratch, but the members of a team share the leader's memory.
void* shared_scratch(Scratch slot, size_t bytes);

}  // namespace fastnn
