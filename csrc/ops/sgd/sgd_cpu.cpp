#include "ops/sgd/sgd.h"

#include "core/flush_subnormals.h"
#include "ops/optim/multi_tensor_cpu.h"
#include "ops/sgd/sgd_update.h"

namespace fastnn::FASTNN_ISA {

namespace {

template <class T, SgdBuffer kBuffer>
struct SgdRule {
  using S = Acc<T>;
  static constexpr int kStates = kBuffer == SgdBuffer::none ? 0 : 1;

  explicit SgdRule(const SgdOptions& o) : constants(sgd_constants<S>(o)) {}

  FASTNN_INLINE void operator()(Vec<S>& p, Vec<S> g, Vec<S>* state) const {
    sgd_update<kBuffer>(p, g, state[0], constants);
  }

  SgdConstants<S> constants;
};

void update_range(const SgdTensor& t, const SgdOptions& o, int64_t begin, int64_t end) {
  dispatch_floating(t.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (o.momentum == 0)
      update_elements<T>(t, begin, end, SgdRule<T, SgdBuffer::none>(o));
    else if (t.first)
      update_elements<T>(t, begin, end, SgdRule<T, SgdBuffer::first>(o));
    else
      update_elements<T>(t, begin, end, SgdRule<T, SgdBuffer::running>(o));
  });
}

void update(SgdTensor* tensors, int64_t count, const SgdOptions& options) {
  update_tensors(tensors, count, [&](const SgdTensor& t, int64_t begin, int64_t end) {
    const FlushSubnormals flush;
    update_range(t, options, begin, end);
  });
}

}  // namespace

SgdKernels sgd_kernels() { return {update, update_range}; }

}  // namespace fastnn::FASTNN_ISA
