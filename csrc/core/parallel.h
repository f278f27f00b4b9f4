// Threads: one OpenMP pool, shared with torch (both bind to the libgomp that torch loaded).
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "core/oversubscription.h"
#include "core/team.h"

namespace fastnn::FASTNN_ISA {

// Calls body(begin, end) on disjoint ranges that cover [0, n), on at most n / grain threads. How the range is
// cut depends on the thread count, so body must not let an element's value depend on its range.
//
// Called by every member of a team (core/team.h), it shares the range among them and returns when all are
// done.
template <class Body>
inline void parallel_for(int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  const int64_t wanted = grain > 0 ? n / grain : n;
  const int64_t threads = wanted < 2 ? 1 : (wanted < max_threads() ? wanted : max_threads());
  if (TeamMember* const member = team_member()) {
    const int64_t begin = n * member->index / threads, end = n * (member->index + 1) / threads;
    member->run_share([&] {
      if (member->index < threads && begin < end) body(begin, end);
    });
    return;
  }
#ifdef _OPENMP
  if (threads > 1 && !omp_in_parallel()) {
    bool out_of_memory = false;
    int64_t first_done = INT64_MAX;
#pragma omp parallel num_threads(static_cast<int>(threads)) reduction(|| : out_of_memory) \
    reduction(min : first_done)
    {
      const int64_t count = omp_get_num_threads(), me = omp_get_thread_num();
      const int64_t begin = n * me / count, end = n * (me + 1) / count;
      // An exception that left the region would end the process. Only scratch memory can fail in a
      // kernel.
      try {
        if (begin < end) body(begin, end);
      } catch (...) {
        out_of_memory = true;
      }
      first_done = clock_ns();
    }
    note_wait(clock_ns() - first_done);
    if (out_of_memory) throw_out_of_memory();
    return;
  }
#endif
  body(int64_t{0}, n);
}

// Runs code() on `threads` threads as a team: each runs all of it, and the parallel_for calls in it share
// their ranges. One parallel region, or none for one thread, then serves a whole sequence of kernels.
template <class Code>
inline void run_as_team([[maybe_unused]] int64_t threads, const Code& code) {
  Team team;
#ifdef _OPENMP
  if (threads > 1 && !omp_in_parallel()) {
    int64_t first_done = INT64_MAX;
#pragma omp parallel num_threads(static_cast<int>(threads)) reduction(min : first_done)
    {
      TeamMember(team, omp_get_thread_num(), omp_get_num_threads()).run(code);
      first_done = clock_ns();
    }
    note_wait(clock_ns() - first_done + team.waited());
  } else {
    TeamMember(team, 0, 1).run(code);
  }
#else
  TeamMember(team, 0, 1).run(code);
#endif
  if (team.failed()) throw_out_of_memory();
}

// Runs piece() as a team, and repeats it as long as next(), which one of the threads calls between two
// pieces, returns that there is another one with the same number of threads: between regions, OpenMP's
// waiting threads keep their processors from other processes.
template <class Piece, class Next>
inline void run_pieces(int64_t threads, const Piece& piece, const Next& next) {
  bool another = false;
  run_as_team(threads, [&] {
    do {
      piece();
      wait_for_team();  // no thread still reads what next() is about to change
      parallel_for(1, 1, [&](int64_t, int64_t) { another = next_piece(team_waited()) && next(); });
    } while (another);
  });
}

}  // namespace fastnn::FASTNN_ISA
