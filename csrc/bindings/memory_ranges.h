// The memory that a call touches, and whether it writes any of it that it reaches twice.
#pragma once

#include <algorithm>
#include <vector>

#include "core/tensor_view.h"

namespace fastnn {

class MemoryRanges {
 public:
  void reserve(size_t count) { ranges_.reserve(count); }

  void add(const TensorView& view, bool written) {
    if (view.numel() == 0) return;
    int64_t last = 0;  // element; plain tensors have no negative strides
    for (int d = 0; d < view.ndim; ++d) last += (view.shape[d] - 1) * view.strides[d];
    const auto* begin = view.as<const char>();
    ranges_.push_back({begin, begin + (last + 1) * dtype_size(view.dtype), written});
  }
  void add(const MemoryRanges& other) {
    ranges_.insert(ranges_.end(), other.ranges_.begin(), other.ranges_.end());
  }

  // Whether no written memory is reachable twice.
  bool disjoint() {
    std::sort(ranges_.begin(), ranges_.end(),
              [](const Range& a, const Range& b) { return a.begin < b.begin; });
    const char* end_of_written = nullptr;
    const char* end_of_any = nullptr;
    for (const Range& range : ranges_) {
      if (range.begin < (range.written ? end_of_any : end_of_written)) return false;
      end_of_any = std::max(end_of_any, range.end);
      if (range.written) end_of_written = std::max(end_of_written, range.end);
    }
    return true;
  }

 private:
  struct Range {
    const char* begin;
    const char* end;
    bool written;
  };
  std::vector<Range> ranges_;
};

}  // namespace fastnn
