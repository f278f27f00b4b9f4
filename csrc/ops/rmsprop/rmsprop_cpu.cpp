#include "ops/optim/multi_tensor_cpu.h"
#include "ops/rmsprop/rmsprop.h"
#include "ops/rmsprop/rmsprop_update.h"

namespace fastnn::FASTNN_ISA {

namespace {

template <class T, bool kMomentum, bool kCentered>
void update(const RmspropTensor& t, const RmspropOptions& options, int64_t begin, int64_t end) {
  const auto c = rmsprop_constants<Acc<T>>(options);
  update_range<T>(
      t, begin, end,
      rule_of<1 + kMomentum + kCentered>([&](auto& p, auto g, auto* state) __attribute__((always_inline)) {
        rmsprop_update<kMomentum, kCentered>(p, g, state[0], state[1], state[1 + kMomentum], c);
      }));
}

void rmsprop_update_tensors(RmspropTensor* tensors, int64_t count, const RmspropOptions& options) {
  update_tensors(tensors, count, [&](auto tag, const RmspropTensor& t, int64_t begin, int64_t end) {
    using T = typename decltype(tag)::type;
    if (options.momentum > 0 && options.centered)
      update<T, true, true>(t, options, begin, end);
    else if (options.momentum > 0)
      update<T, true, false>(t, options, begin, end);
    else if (options.centered)
      update<T, false, true>(t, options, begin, end);
    else
      update<T, false, false>(t, options, begin, end);
  });
}

}  // namespace

RmspropKernels rmsprop_kernels() { return {rmsprop_update_tensors}; }

}  // namespace fastnn::FASTNN_ISA
