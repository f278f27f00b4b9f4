#include "ops/adagrad/adagrad.h"

#include "ops/adagrad/adagrad_update.h"
#include "ops/optim/multi_tensor_cpu.h"

namespace fastnn::FASTNN_ISA {

namespace {

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

void update_range(const AdagradTensor& t, const AdagradOptions& o, int64_t begin, int64_t end) {
  dispatch_floating(t.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    update_elements<T>(t, begin, end, AdagradRule<T>(t, o));
  });
}

void update(AdagradTensor* tensors, int64_t count, const AdagradOptions& options) {
  update_tensors(tensors, count, [&](const AdagradTensor& t, int64_t begin, int64_t end) {
    update_range(t, options, begin, end);
  });
}

}  // namespace

AdagradKernels adagrad_kernels() { return {update, update_range}; }

}  // namespace fastnn::FASTNN_ISA
