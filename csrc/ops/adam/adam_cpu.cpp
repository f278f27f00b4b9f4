#include "core/flush_subnormals.h"
#include "ops/adam/adam.h"
#include "ops/adam/adam_rule.h"
#include "ops/optim/multi_tensor_cpu.h"

namespace fastnn::FASTNN_ISA {

namespace {

void adam_update_tensors(AdamTensor* tensors, int64_t count, const AdamOptions& options) {
  update_tensors(tensors, count, [&](auto tag, const AdamTensor& t, int64_t begin, int64_t end) {
    using T = typename decltype(tag)::type;
    const FlushSubnormals flush;
    with_rule<T>(t, options, [&](const auto& rule) { update_range<T>(t, begin, end, rule); });
  });
}

}  // namespace

AdamKernels adam_kernels() { return {adam_update_tensors}; }

}  // namespace fastnn::FASTNN_ISA
