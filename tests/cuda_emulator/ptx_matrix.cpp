// Copies and tensor-core products as the PTX instruction set describes them.
#include "core/cuda/ptx_matrix.cuh"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <deque>
#include <map>
#include <vector>

#include "core/simd.h"
#include "scheduler.h"

namespace fastnn::cuda::ptx {

namespace {

struct Copy {
  void* shared;
  const void* global;
  int bytes, valid;
};
using Group = std::vector<Copy>;

// For each running thread: the copies not yet in a group, and the groups in flight.
struct Pending {
  Group open;
  std::deque<Group> groups;
};
std::map<size_t, Pending> pending_of_threads;

Pending& pending() {
  static long launch = 0;
  if (launch != cuda_emulator::launches()) pending_of_threads.clear();  // left by a failed launch
  launch = cuda_emulator::launches();
  return pending_of_threads[cuda_emulator::thread()];
}

void copy(const Copy& c) {
  std::memset(c.shared, 0, static_cast<size_t>(c.bytes));
  if (c.valid > 0) std::memcpy(c.shared, c.global, static_cast<size_t>(c.valid));
}

bool aligned(const void* p, int bytes) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<unsigned>(bytes) == 0;
}

// The bytes of a lane that an exchange passes on.
struct Row {
  uint32_t words[4];
};

Row row_at(SharedAddress at) {
  const void* const p = reinterpret_cast<const void*>(at);
  if (!aligned(p, 16)) cuda_emulator::fail("ldmatrix: an address is not aligned to 16 bytes");
  Row row;
  std::memcpy(&row, p, sizeof(row));
  return row;
}

constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
float value(uint32_t word, int half) {
  return to_acc(T{static_cast<uint16_t>(word >> (16 * half))});
}

struct Factors {
  uint32_t a[4], b[2];
};

// The sum as the coarsest tensor cores compute it: every term is truncated below the last bit of a float as
// large as the largest of them, and so is their sum.
template <int kCount>
float cut_off_sum(const double (&terms)[kCount]) {
  double largest = 0, sum = 0;
  for (const double term : terms) {
    sum += term;
    largest = std::max(largest, std::abs(term));
  }
  if (!std::isfinite(sum) || largest == 0) return static_cast<float>(sum);
  const double unit = std::ldexp(1.0, std::max(std::ilogb(largest) - 23, -149));
  sum = 0;
  for (const double term : terms) sum += std::trunc(term / unit);
  sum *= unit;
  const float rounded = static_cast<float>(sum);
  return std::isfinite(rounded) && std::abs(double{rounded}) > std::abs(sum) ? std::nextafter(rounded, 0.0f)
                                                                             : rounded;
}

// `words` factors in a word, read by `get(word, index)`.
template <int kPerWord, class Get>
void multiply_add_words(const char* name, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        const Get& get) {
  Factors mine;
  std::memcpy(mine.a, a, sizeof(mine.a));
  std::memcpy(mine.b, b, sizeof(mine.b));
  const auto all = cuda_emulator::exchange(name, kAllLanes, mine);
  const int lane = cuda_emulator::lane(), g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    double terms[8 * kPerWord + 1] = {double{c[i]}};  // products are exact
    for (int word = 0; word < 8; ++word) {
      const uint32_t left = all[row % 8 * 4 + word % 4].a[word / 4 * 2 + row / 8];
      const uint32_t right = all[column * 4 + word % 4].b[word / 4];
      for (int k = 0; k < kPerWord; ++k)
        terms[1 + word * kPerWord + k] = double{get(left, k)} * double{get(right, k)};
    }
    c[i] = cut_off_sum(terms);
  }
}

}  // namespace

void copy_async_bytes(void* shared, const void* global, int bytes, int valid) {
  if (!aligned(shared, bytes) || (valid > 0 && !aligned(global, bytes)))
    cuda_emulator::fail("cp.async: an address is not aligned");
  if (valid < 0 || valid > bytes) cuda_emulator::fail("cp.async: more bytes than it copies");
  pending().open.push_back({shared, global, bytes, valid});
}

void commit_copies() {
  Pending& own = pending();
  own.groups.push_back(std::move(own.open));
  own.open.clear();
}

void wait_copies(int left) {
  Pending& own = pending();
  for (; own.groups.size() > static_cast<size_t>(left); own.groups.pop_front())
    for (const Copy& c : own.groups.front()) copy(c);
}

void load_matrices(uint32_t (&words)[4], SharedAddress row) {
  const auto all = cuda_emulator::exchange("ldmatrix", kAllLanes, row_at(row));
  const int lane = cuda_emulator::lane();
  for (int q = 0; q < 4; ++q) words[q] = all[q * 8 + lane / 4].words[lane % 4];
}

void load_transposed_matrices(uint32_t (&words)[4], SharedAddress row) {
  const auto all = cuda_emulator::exchange("ldmatrix.trans", kAllLanes, row_at(row));
  const int lane = cuda_emulator::lane(), g = lane / 4, t = lane % 4;
  const auto element = [&](int q, int r, int column) {
    return all[q * 8 + r].words[column / 2] >> (16 * (column % 2)) & 0xffffu;
  };
  for (int q = 0; q < 4; ++q) words[q] = element(q, 2 * t, g) | element(q, 2 * t + 1, g) << 16;
}

uint32_t load_word(SharedAddress at) {
  uint32_t word;
  std::memcpy(&word, reinterpret_cast<const void*>(at), sizeof(word));
  return word;
}

template <>
void multiply_add<bfloat16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_add_words<2>("mma.bf16", c, a, b, value<bfloat16>);
}
template <>
void multiply_add<float16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_add_words<2>("mma.f16", c, a, b, value<float16>);
}
// The device reads the upper 19 bits only.
template <>
void multiply_add<float>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_add_words<1>("mma.tf32", c, a, b, [](uint32_t word, int) {
    word &= 0xffffe000u;
    float x;
    std::memcpy(&x, &word, sizeof(x));
    return x;
  });
}

uint32_t round_to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (std::isnan(x)) return 0x7fffe000u;
  if (std::isinf(x)) return bits;
  return (bits + 0x1000u) & 0xffffe000u;
}

}  // namespace fastnn::cuda::ptx
