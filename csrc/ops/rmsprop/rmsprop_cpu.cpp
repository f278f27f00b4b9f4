#include "ops/rmsprop/rmsprop.h"

#include "ops/optim/multi_tensor_cpu.h"
#include "ops/rmsprop/rmsprop_update.h"

namespace fastnn::FASTNN_ISA {

namespace {

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

void update_range(const RmspropTensor& t, const RmspropOptions& o, int64_t begin, int64_t end) {
  dispatch_floating(t.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (o.momentum > 0 && o.centered)
      update_elements<T>(t, begin, end, RmspropRule<T, true, true>(o));
    else if (o.momentum > 0)
      update_elements<T>(t, begin, end, RmspropRule<T, true, false>(o));
    else if (o.centered)
      update_elements<T>(t, begin, end, RmspropRule<T, false, true>(o));
    else
      update_elements<T>(t, begin, end, RmspropRule<T, false, false>(o));
  });
}

void update(RmspropTensor* tensors, int64_t count, const RmspropOptions& options) {
  update_tensors(tensors, count, [&](const RmspropTensor& t, int64_t begin, int64_t end) {
    update_range(t, options, begin, end);
  });
}

}  // namespace

RmspropKernels rmsprop_kernels() { return {update, update_range}; }

}  // namespace fastnn::FASTNN_ISA
