#include "ops/optim/multi_tensor_cpu.h"
#include "ops/sgd/sgd.h"
#include "ops/sgd/sgd_update.h"

namespace fastnn::FASTNN_ISA {

namespace {

template <class S>
SgdConstants<S> constants(const SgdOptions& o) {
  return {static_cast<S>(o.maximize ? -1 : 1), static_cast<S>(o.l2),  static_cast<S>(o.momentum),
          static_cast<S>(1 - o.dampening),     static_cast<S>(-o.lr), o.nesterov};
}

template <class T, SgdBuffer kBuffer>
void update(const SgdTensor& t, const SgdOptions& options, int64_t begin, int64_t end) {
  const auto c = constants<Acc<T>>(options);
  update_range<T, kBuffer == SgdBuffer::none ? 0 : 1>(
      t, begin, end, [&](auto& p, auto g, auto* state) __attribute__((always_inline)) {
        sgd_update<kBuffer>(p, g, state[0], c);
      });
}

void sgd_update_tensors(SgdTensor* tensors, int64_t count, const SgdOptions& options) {
  update_tensors(tensors, count, [&](auto tag, const SgdTensor& t, int64_t begin, int64_t end) {
    using T = typename decltype(tag)::type;
    if (options.momentum == 0)
      update<T, SgdBuffer::none>(t, options, begin, end);
    else if (t.first)
      update<T, SgdBuffer::first>(t, options, begin, end);
    else
      update<T, SgdBuffer::running>(t, options, begin, end);
  });
}

}  // namespace

SgdKernels sgd_kernels() { return {sgd_update_tensors}; }

}  // namespace fastnn::FASTNN_ISA
