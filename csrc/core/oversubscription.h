// Threads that spin, waiting for each other, while other processes hold the processors that they need.
#pragma once

#include <cstdint>

namespace fastnn {

// Nanoseconds on a clock that only goes forward.
int64_t clock_ns();

// Work that the calling thread does for as long as the object lives; one at a time. It is a piece, or several
// of the same size one after the other.
//
// Where a region's threads waited for each other for longer than one of them would have taken for all of the
// piece, or for some short pieces in a row, some had no processor. The thread then does its short pieces of
// work alone for a while, which costs little where that was a mistake: results do not depend on the number of
// threads.
class Work {
 public:
  // `operations`: of a piece, elements touched, or multiply-adds / 16.
  explicit Work(int64_t operations);
  ~Work();
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

 private:
  friend bool works_alone();
  friend bool next_piece(int64_t);
  friend void note_wait(int64_t);

  // The threads have waited so long, all in all, at the end of a piece.
  void judge(int64_t waited);

  const int64_t operations_;
  bool alone_ = false;
  int64_t waited_ = 0;
  int64_t judged_wait_ = 0, unjudged_ = 0;  // of `waited`; operations done since
};

// Whether the calling thread's work is to be done by it alone.
bool works_alone();

// Between two pieces of the calling thread's work, in a region whose threads have waited so many nanoseconds
// up to now: whether as many are to do the next one. Else it should be new work.
bool next_piece(int64_t waited);

// The threads of a region of the calling thread waited so many nanoseconds.
void note_wait(int64_t nanoseconds);

// Off, nobody works alone: for tests of what several threads do.
void notice_oversubscription(bool on);

}  // namespace fastnn
