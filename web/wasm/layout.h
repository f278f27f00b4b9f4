// Cuts a block of memory into parts.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/scratch.h"

namespace fastnn {

// Parts of one block, each on a cache line of its own. Counted in 64 bits: addresses have 32 here, and a sum
// of sizes that wrapped around would leave parts on top of each other.
class Layout {
 public:
  int64_t take(int64_t values, int64_t value_size) {
    const int64_t at = size_;
    size_ += (values * value_size + 63) / 64 * 64;
    return at;
  }

  // Makes the buffer as large as all parts.
  void grow(ScratchBuffer& buffer) const {
    if (size_ > kMost) throw_out_of_memory();
    buffer.grow(static_cast<size_t>(size_));
  }
  void grow_zeroed(ScratchBuffer& buffer) const {
    grow(buffer);
    std::memset(buffer.data(), 0, static_cast<size_t>(size_));
  }

 private:
  static constexpr int64_t kMost = (int64_t{1} << 32) - 4096;
  int64_t size_ = 0;
};

}  // namespace fastnn
