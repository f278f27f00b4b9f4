// The RMSprop update as multi_tensor_cpu.h and the epilogue of a product take it.
#pragma once

#include "core/simd.h"
#include "ops/rmsprop/rmsprop.h"
#include "ops/rmsprop/rmsprop_update.h"

namespace fastnn::FASTNN_ISA {

template <class T, bool kMomentum, bool kCentered>
struct RmspropRule {
  using S = Acc<T>;
  static constexpr int kStates = 1 + kMomentum + kCentered;

  explicit RmspropRule(const RmspropOptions& o) : constants(rmsprop_constants<S>(o)) {}

  FASTNN_INLINE void operator()(Vec<S>& p, Vec<S> g, Vec<S>* state) const {
    rmsprop_update<kMomentum, kCentered>(p, g, state[0], state[1], state[1 + kMomentum], constants);
  }

  RmspropConstants<S> constants;
};

// Calls visit(rule) with the rule for one tensor.
template <class T, class Visit>
FASTNN_INLINE void with_rule(const RmspropTensor&, const RmspropOptions& o, const Visit& visit) {
  if (o.momentum > 0 && o.centered)
    visit(RmspropRule<T, true, true>(o));
  else if (o.momentum > 0)
    visit(RmspropRule<T, true, false>(o));
  else if (o.centered)
    visit(RmspropRule<T, false, true>(o));
  else
    visit(RmspropRule<T, false, false>(o));
}

}  // namespace fastnn::FASTNN_ISA
