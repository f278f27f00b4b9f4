#include "ops/adagrad/adagrad.h"
#include "ops/adagrad/adagrad_rule.h"
#include "ops/optim/multi_tensor_cpu.h"

namespace fastnn::FASTNN_ISA {

namespace {

void adagrad_update_tensors(AdagradTensor* tensors, int64_t count, const AdagradOptions& options) {
  update_tensors(tensors, count, [&](auto tag, const AdagradTensor& t, int64_t begin, int64_t end) {
    using T = typename decltype(tag)::type;
    with_rule<T>(t, options, [&](const auto& rule) { update_range<T>(t, begin, end, rule); });
  });
}

}  // namespace

AdagradKernels adagrad_kernels() { return {adagrad_update_tensors}; }

}  // namespace fastnn::FASTNN_ISA
