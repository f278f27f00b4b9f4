// Bernoulli numbers from a Mersenne Twister (Matsumoto and Nishimura 1998, MT19937), exactly those that
// torch.Tensor.bernoulli_(p) draws on the CPU, in the same order:
//   x[i] = (r mod 2^53) / 2^53 < p,   r the 64 bits of the next two numbers of 32 bits, the higher half first
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastnn {

struct MersenneTwister {
  static constexpr int64_t kWords = 624;

  uint32_t words[kWords];
  int64_t next;  // the word to be drawn next; kWords: all have been drawn
};

struct BernoulliKernels {
  // x: n elements of float32 or float64, contiguous; 0 <= p <= 1.
  void (*draw)(MersenneTwister& twister, double p, void* x, DType dtype, int64_t n);
};

namespace FASTNN_ISA {
BernoulliKernels bernoulli_kernels();
}

}  // namespace fastnn
