// The SGD update as multi_tensor_cpu.h and the epilogue of a product take it.
#pragma once

#include "core/simd.h"
#include "ops/sgd/sgd.h"
#include "ops/sgd/sgd_update.h"

namespace fastnn::FASTNN_ISA {

template <class T, SgdBuffer kBuffer>
struct SgdRule {
  using S = Acc<T>;
  static constexpr int kStates = kBuffer == SgdBuffer::none ? 0 : 1;

  explicit SgdRule(const SgdOptions& o) : constants(sgd_constants<S>(o)) {}

  FASTNN_INLINE void operator()(Vec<S>& p, Vec<S> g, Vec<S>* state) const {
    sgd_update<kBuffer>(p, g, state[0], constants);
  }

  SgdConstants<S> constants;
};

// Calls visit(rule) with the rule for one tensor.
template <class T, class Visit>
FASTNN_INLINE void with_rule(const SgdTensor& t, const SgdOptions& o, const Visit& visit) {
  if (o.momentum == 0)
    visit(SgdRule<T, SgdBuffer::none>(o));
  else if (t.first)
    visit(SgdRule<T, SgdBuffer::first>(o));
  else
    visit(SgdRule<T, SgdBuffer::running>(o));
}

}  // namespace fastnn::FASTNN_ISA
