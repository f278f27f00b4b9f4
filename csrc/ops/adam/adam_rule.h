// The Adam update as multi_tensor_cpu.h and the epilogue of a product take it.
#pragma once

#include "ops/adam/adam.h"
#include "ops/adam/adam_update.h"

namespace fastnn::FASTNN_ISA {

template <class T, bool kAmsgrad>
struct AdamRule {
  using S = Acc<T>;
  static constexpr int kStates = kAmsgrad ? 3 : 2;

  AdamRule(const AdamTensor& t, const AdamOptions& o)
      : constants(adam_constants<S>(o, t.step_size, t.denom_scale)) {}

  FASTNN_INLINE void operator()(Vec<S>& p, Vec<S> g, Vec<S>* state) const {
    adam_update<kAmsgrad>(p, g, state[0], state[1], state[2], constants);
  }

  AdamConstants<S> constants;
};

// Calls visit(rule) with the rule for one tensor.
template <class T, class Visit>
FASTNN_INLINE void with_rule(const AdamTensor& t, const AdamOptions& o, const Visit& visit) {
  if (o.amsgrad)
    visit(AdamRule<T, true>(t, o));
  else
    visit(AdamRule<T, false>(t, o));
}

}  // namespace fastnn::FASTNN_ISA
