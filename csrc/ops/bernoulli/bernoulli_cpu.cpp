#include "ops/bernoulli/bernoulli.h"

namespace fastnn::FASTNN_ISA {

namespace {

constexpr int64_t kWords = MersenneTwister::kWords;
constexpr int64_t kShift = 397;  // of the recurrence

uint32_t twisted(uint32_t word, uint32_t following, uint32_t shifted) {
  const uint32_t mixed = (word & 0x80000000u) | (following & 0x7fffffffu);
  return shifted ^ (mixed >> 1) ^ ((0u - (following & 1u)) & 0x9908b0dfu);
}

// The next 624 words. Every loop reads words at least 227 away from those it writes, or one word ahead, which
// is not yet written: vectors of words give the same result as single ones.
void twist(uint32_t* words) {
#pragma GCC ivdep
  for (int64_t i = 0; i < kWords - kShift; ++i) words[i] = twisted(words[i], words[i + 1], words[i + kShift]);
#pragma GCC ivdep
  for (int64_t i = kWords - kShift; i < kWords - 1; ++i)
    words[i] = twisted(words[i], words[i + 1], words[i + kShift - kWords]);
  words[kWords - 1] = twisted(words[kWords - 1], words[0], words[kShift - 1]);
}

uint32_t tempered(uint32_t word) {
  word ^= word >> 11;
  word ^= (word << 7) & 0x9d2c5680u;
  word ^= (word << 15) & 0xefc60000u;
  return word ^ (word >> 18);
}

template <class T>
void draw_as(MersenneTwister& twister, uint64_t bound, T* x, int64_t n) {
  uint32_t drawn[1 + kWords];  // one may be left over from before, as each element takes two
  int64_t held = 0;
  while (n > 0) {
    if (twister.next == kWords) {
      twist(twister.words);
      twister.next = 0;
    }
    const int64_t rest = kWords - twister.next, wanted = 2 * n - held, taken = rest < wanted ? rest : wanted;
    for (int64_t i = 0; i < taken; ++i) drawn[held + i] = tempered(twister.words[twister.next + i]);
    twister.next += taken;
    const int64_t pairs = (held + taken) / 2;
    for (int64_t i = 0; i < pairs; ++i) {
      const uint64_t high = drawn[2 * i] & 0x1fffffu;
      x[i] = (high << 32 | drawn[2 * i + 1]) < bound ? T(1) : T(0);
    }
    held = (held + taken) % 2;
    drawn[0] = drawn[2 * pairs];
    x += pairs;
    n -= pairs;
  }
}

void draw(MersenneTwister& twister, double p, void* x, DType dtype, int64_t n) {
  // r / 2^53 < p if and only if r < p 2^53: both sides are exact.
  const double scaled = p * 9007199254740992.0;
  auto bound = static_cast<uint64_t>(scaled);
  if (static_cast<double>(bound) < scaled) ++bound;
  if (dtype == DType::f32)
    draw_as(twister, bound, static_cast<float*>(x), n);
  else
    draw_as(twister, bound, static_cast<double*>(x), n);
}

}  // namespace

BernoulliKernels bernoulli_kernels() { return {draw}; }

}  // namespace fastnn::FASTNN_ISA
