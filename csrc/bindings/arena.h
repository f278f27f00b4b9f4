// Cuts a block of memory into parts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastnn {

// Parts of one block of memory, each on a cache line of its own.
class Arena {
 public:
  size_t take(int64_t values, int64_t value_size) {
    const size_t at = size_;
    size_ += (static_cast<size_t>(values * value_size) + 63) / 64 * 64;
    return at;
  }
  size_t size() const { return size_; }

 private:
  size_t size_ = 0;
};

}  // namespace fastnn
