// Threads that spin, waiting for each other, while other processes hold the processors that they need.
#pragma once

#include <cstdint>

namespace fastnn {

// Nanoseconds of a monotonic clock.
int64_t clock_ns();

// Work of the calling thread for the lifetime of the object; one at a time. It is a piece, or several of the
// same size one after the other.
//
// If a region's threads waited for each other for longer than one of them would have taken for the whole
// piece, or for several short pieces in a row, some had no processor. The thread then does its short pieces
// of work alone for a while, which costs little if that was wrong: results do not depend on the number of
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

  // `waited`: the threads' total wait up to the end of a piece.
  void judge(int64_t waited);

  const int64_t operations_;
  bool alone_ = false;
  int64_t waited_ = 0;
  int64_t judged_wait_ = 0, unjudged_ = 0;  // of `waited`; operations done since
};

// Whether the calling thread should do its work alone.
bool works_alone();

// Between two pieces of the calling thread's work, in a region whose threads have waited `waited` nanoseconds
// so far: whether as many threads should do the next one. Otherwise it should be new work.
bool next_piece(int64_t waited);

// Reports how long the threads of a region of the calling thread waited.
void note_wait(int64_t nanoseconds);

// If off, no thread works alone: for tests of several threads.
void notice_oversubscription(bool on);

}  // namespace fastnn
