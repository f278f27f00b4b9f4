// Treats subnormal numbers as 0 on the calling thread for the life of the object.
//
// Processors compute with subnormals some ten times slower, and training produces them: if the gradient of a
// weight stays 0 because its ReLU no longer fires, its first moment decays to the smallest subnormal and
// stays there, since 0.9 times it rounds back to itself. (MNIST, 784-128-10: six such units of 128 from the
// second epoch on, and steps that take 20% longer.)
#pragma once

#include "core/simd.h"

namespace fastnn::FASTNN_ISA {

class FlushSubnormals {
 public:
  explicit FlushSubnormals(bool on = true) : saved_(mode()) {
    if (on) set_mode(saved_ | kFlush);
  }
  ~FlushSubnormals() { set_mode(saved_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
#if defined(__SSE2__)
  using Mode = unsigned;
  static constexpr Mode kFlush = 0x8040;  // MXCSR: flush results to zero, take operands as zero
  static FASTNN_INLINE Mode mode() { return _mm_getcsr(); }
  static FASTNN_INLINE void set_mode(Mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
  using Mode = uint64_t;
  static constexpr Mode kFlush = Mode{1} << 24;  // FPCR.FZ: both
  static FASTNN_INLINE Mode mode() {
    Mode mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static FASTNN_INLINE void set_mode(Mode mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
  using Mode = int;
  static constexpr Mode kFlush = 0;
  static Mode mode() { return 0; }
  static void set_mode(Mode) {}
#endif

  const Mode saved_;
};

}  // namespace fastnn::FASTNN_ISA
