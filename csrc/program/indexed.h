// A tensor some of whose dimensions are addressed by index tensors.
//
// The instructions that use it run over the elements of a tensor `over`, one of their operands, of the shape
// that each index tensor was broadcast to. `code` describes each dimension of the indexed tensor: a
// dimension of `over`, from 0 on, or ~j, addressed by index tensor j. Indices are int64. Before that, it
// has the number of index tensors and whether an index may count from the end.
//
// `flag`, one int64, is set as described for Instruction::bad_index. The memory addressed by a bad index is
// neither read nor written.
#pragma once

#include "program/instruction.h"
#include "program/nest.h"

namespace fastnn::FASTNN_ISA {

namespace {

struct IndexTensor {
  const TensorView* view;
  int64_t size, stride;  // of the dimension that it addresses
};

// The indexed tensor as seen by the loops: `kIndices` index tensors at most.
template <int kIndices>
struct Indexed {
  static constexpr int kViews = 2 + kIndices;
  Nest<kViews> nest;  // over, the indexed tensor's plain dimensions, index tensors
  IndexTensor index[kIndices];
  Offsets<kViews> first;  // where the loops start
  int count;
  bool from_end;

  // Loops over `over`, or over [begin, end) of its dimension `part`. Not inlined: one copy serves all
  // types.
  __attribute__((noinline)) Indexed(const TensorView& over, const TensorView& tensor,
                                    const TensorView* indices, const int64_t* code, int part = -1,
                                    int64_t begin = 0, int64_t end = 0)
      : count(static_cast<int>(code[0])), from_end(code[1]) {
    for (int j = 0; j < count; ++j) index[j].view = indices + j;
    int64_t plain[TensorView::kMaxDims] = {};
    for (int d = 0; d < tensor.ndim; ++d) {
      const int64_t is = code[2 + d];
      if (is >= 0) {
        plain[is] = tensor.strides[d];
      } else {
        index[~is].size = tensor.shape[d];
        index[~is].stride = tensor.strides[d];
      }
    }
    for (int d = 0; d < over.ndim; ++d) {
      const Offsets<kViews> by = step(over.strides[d], plain[d], d);
      nest.add(d == part ? end - begin : over.shape[d], by);
      if (d == part)
        for (int v = 0; v < kViews; ++v) first.of[v] = begin * by.of[v];
    }
  }

  // Whether all indices are the same along the innermost loop.
  bool whole_rows() const {
    for (int j = 0; j < count; ++j)
      if (nest.inner_step(2 + j) != 0) return false;
    return true;
  }

  // Adds to `offset` the element addressed by the indices at `at`; false if one is out of range.
  FASTNN_INLINE bool locate(const Offsets<kViews>& at, int64_t& offset) const {
    bool inside = true;
    for (int j = 0; j < (kIndices <= 2 ? kIndices : count); ++j) {
      int64_t k = index[j].view->template as<const int64_t>()[at.of[2 + j]];
      if (from_end && k < 0) k += index[j].size;
      inside = inside && static_cast<uint64_t>(k) < static_cast<uint64_t>(index[j].size);
      offset += inside ? k * index[j].stride : 0;
    }
    return inside;
  }

  // Moves each index tensor on by one element of the innermost loop.
  FASTNN_INLINE void next(Offsets<kViews>& at) const {
    for (int j = 0; j < (kIndices <= 2 ? kIndices : count); ++j) at.of[2 + j] += nest.inner_step(2 + j);
  }

  // Sets the flag. For one thread, because the first bad index is reported.
  __attribute__((noinline)) void check(int64_t* flag) const {
    *flag = kAllWell;
    for (int j = 0; j < count && *flag == kAllWell; ++j) {
      const TensorView& view = *index[j].view;
      Nest<1> each;
      for (int d = 0; d < view.ndim; ++d)
        if (view.strides[d] != 0) each.add(view.shape[d], {{view.strides[d]}});
      const int64_t by = each.inner_step(0), low = from_end ? -index[j].size : 0, high = index[j].size;
      for_rows(each, 0, each.numel(), [&](const Offsets<1>& at, int64_t n) {
        const int64_t* const p = view.as<const int64_t>() + at.of[0];
        bool bad = false;
        for (int64_t k = 0; k < n; ++k) bad |= p[k * by] < low || p[k * by] >= high;
        for (int64_t k = 0; bad && k < n && *flag == kAllWell; ++k)
          if (p[k * by] < low || p[k * by] >= high) *flag = p[k * by] == kAllWell ? INT64_MIN : p[k * by];
      });
    }
  }

 private:
  Offsets<kViews> step(int64_t over, int64_t plain, int dim) const {
    Offsets<kViews> by;
    by.of[0] = over;
    by.of[1] = plain;
    for (int j = 0; j < count; ++j) by.of[2 + j] = index[j].view->strides[dim];
    return by;
  }
};

}  // namespace

}  // namespace fastnn::FASTNN_ISA
