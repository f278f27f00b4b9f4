#include "ops/adam/adam.h"

#include "core/flush_subnormals.h"
#include "ops/adam/adam_update.h"
#include "ops/optim/multi_tensor_cpu.h"

namespace fastnn::FASTNN_ISA {

namespace {

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

void update_range(const AdamTensor& t, const AdamOptions& o, int64_t begin, int64_t end) {
  dispatch_floating(t.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (o.amsgrad)
      update_elements<T>(t, begin, end, AdamRule<T, true>(t, o));
    else
      update_elements<T>(t, begin, end, AdamRule<T, false>(t, o));
  });
}

void update(AdamTensor* tensors, int64_t count, const AdamOptions& options) {
  update_tensors(tensors, count, [&](const AdamTensor& t, int64_t begin, int64_t end) {
    const FlushSubnormals flush;
    update_range(t, options, begin, end);
  });
}

}  // namespace

AdamKernels adam_kernels() { return {update, update_range}; }

}  // namespace fastnn::FASTNN_ISA
