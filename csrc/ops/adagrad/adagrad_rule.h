// The Adagrad update as multi_tensor_cpu.h and the epilogue of a product take it.
#pragma once

#include "core/simd.h"
#include "ops/adagrad/adagrad.h"
#include "ops/adagrad/adagrad_update.h"

namespace fastnn::FASTNN_ISA {

template <class T>
struct AdagradRule {
  using S = Acc<T>;
  static constexpr int kStates = 1;

  AdagradRule(const AdagradTensor& t, const AdagradOptions& o) : constants(adagrad_constants<S>(o, t.step)) {}

  FASTNN_INLINE void operator()(Vec<S>& p, Vec<S> g, Vec<S>* state) const {
    adagrad_update(p, g, state[0], constants);
  }

  AdagradConstants<S> constants;
};

// Calls visit(rule) with the rule for one tensor.
template <class T, class Visit>
FASTNN_INLINE void with_rule(const AdagradTensor& t, const AdagradOptions& o, const Visit& visit) {
  visit(AdagradRule<T>(t, o));
}

}  // namespace fastnn::FASTNN_ISA
