#include "ops/optim/multi_tensor_cpu.h"
#include "ops/rmsprop/rmsprop.h"
#include "ops/rmsprop/rmsprop_rule.h"

namespace fastnn::FASTNN_ISA {

namespace {

void rmsprop_update_tensors(RmspropTensor* tensors, int64_t count, const RmspropOptions& options) {
  update_tensors(tensors, count, [&](auto tag, const RmspropTensor& t, int64_t begin, int64_t end) {
    using T = typename decltype(tag)::type;
    with_rule<T>(t, options, [&](const auto& rule) { update_range<T>(t, begin, end, rule); });
  });
}

}  // namespace

RmspropKernels rmsprop_kernels() { return {rmsprop_update_tensors}; }

}  // namespace fastnn::FASTNN_ISA
