// The memory that a call touches, and whether it writes any that is reachable twice.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "core/check.h"
#include "core/tensor_view.h"

namespace fastnn {

struct MemoryRange {
  const char* begin;
  const char* end;
  bool written;

  // Of a tensor with elements.
  MemoryRange(const TensorView& view, bool is_written) : begin(view.as<const char>()), written(is_written) {
    int64_t last = 0;  // element; plain tensors have no negative strides
    for (int d = 0; d < view.ndim; ++d) last += (view.shape[d] - 1) * view.strides[d];
    end = begin + (last + 1) * dtype_size(view.dtype);
  }
};

// Throws if a tensor that a call writes shares memory with another of its tensors; any may be absent.
inline void check_apart(const char* op, std::initializer_list<const TensorView*> written,
                        std::initializer_list<const TensorView*> read) {
  const auto apart = [op](const TensorView* one, const TensorView* other) {
    if (!other || other->numel() == 0) return;
    const MemoryRange a(*one, true), b(*other, false);
    check(a.end <= b.begin || b.end <= a.begin, op, ": an output of shape ", shape_string(*one),
          " shares memory with a tensor of shape ", shape_string(*other));
  };
  for (auto one = written.begin(); one != written.end(); ++one) {
    if (!*one || (*one)->numel() == 0) continue;
    for (auto other = one + 1; other != written.end(); ++other) apart(*one, *other);
    for (const TensorView* other : read) apart(*one, other);
  }
}

class MemoryRanges {
 public:
  void reserve(size_t count) { ranges_.reserve(count); }

  void add(const TensorView& view, bool written) {
    if (view.numel() > 0) ranges_.emplace_back(view, written);
  }
  void add(const MemoryRanges& other) {
    ranges_.insert(ranges_.end(), other.ranges_.begin(), other.ranges_.end());
  }

  // Whether no written memory is reachable twice.
  bool disjoint() {
    std::sort(ranges_.begin(), ranges_.end(),
              [](const MemoryRange& a, const MemoryRange& b) { return a.begin < b.begin; });
    const char* end_of_written = nullptr;
    const char* end_of_any = nullptr;
    for (const MemoryRange& range : ranges_) {
      if (range.begin < (range.written ? end_of_any : end_of_written)) return false;
      end_of_any = std::max(end_of_any, range.end);
      if (range.written) end_of_written = std::max(end_of_written, range.end);
    }
    return true;
  }

 private:
  std::vector<MemoryRange> ranges_;
};

}  // namespace fastnn
