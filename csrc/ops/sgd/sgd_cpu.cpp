#include "core/flush_subnormals.h"
#include "ops/optim/multi_tensor_cpu.h"
#include "ops/sgd/sgd.h"
#include "ops/sgd/sgd_rule.h"

namespace fastnn::FASTNN_ISA {

namespace {

void sgd_update_tensors(SgdTensor* tensors, int64_t count, const SgdOptions& options) {
  update_tensors(tensors, count, [&](auto tag, const SgdTensor& t, int64_t begin, int64_t end) {
    using T = typename decltype(tag)::type;
    const FlushSubnormals flush;
    with_rule<T>(t, options, [&](const auto& rule) { update_range<T>(t, begin, end, rule); });
  });
}

}  // namespace

SgdKernels sgd_kernels() { return {sgd_update_tensors}; }

}  // namespace fastnn::FASTNN_ISA
