#include "ops/adam/adam.h"
#include "ops/adam/adam_update.h"
#include "ops/optim/multi_tensor_cpu.h"

namespace fastnn::FASTNN_ISA {

namespace {

template <class S>
AdamConstants<S> constants(const AdamTensor& t, const AdamOptions& o) {
  return {static_cast<S>(o.maximize ? -1 : 1), static_cast<S>(o.l2),          static_cast<S>(o.decay),
          static_cast<S>(1 - o.beta1),         static_cast<S>(o.beta1),       static_cast<S>(o.beta2),
          static_cast<S>(1 - o.beta2),         static_cast<S>(t.denom_scale), static_cast<S>(o.eps),
          static_cast<S>(-t.step_size)};
}

template <class T, bool kAmsgrad>
void update(const AdamTensor& t, const AdamOptions& options, int64_t begin, int64_t end) {
  const auto c = constants<Acc<T>>(t, options);
  update_range<T, kAmsgrad ? 3 : 2>(t, begin, end,
                                    [&](auto& p, auto g, auto* state) __attribute__((always_inline)) {
                                      adam_update<kAmsgrad>(p, g, state[0], state[1], state[2], c);
                                    });
}

void adam_update_tensors(AdamTensor* tensors, int64_t count, const AdamOptions& options) {
  update_tensors(tensors, count, [&](auto tag, const AdamTensor& t, int64_t begin, int64_t end) {
    using T = typename decltype(tag)::type;
    if (options.amsgrad)
      update<T, true>(t, options, begin, end);
    else
      update<T, false>(t, options, begin, end);
  });
}

}  // namespace

AdamKernels adam_kernels() { return {adam_update_tensors}; }

}  // namespace fastnn::FASTNN_ISA
