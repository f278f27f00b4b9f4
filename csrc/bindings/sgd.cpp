// sgd_step: one step of SGD on a parameter group.
#include "bindings/registration.h"
#include "bindings/sgd_step.h"
#include "dispatch/cpu_dispatch.h"

namespace fastnn {

void SgdStep::update(SgdTensor* tensors, int64_t count) {
  const KernelCall call(2 * elements());
  cpu_kernels().sgd.update(tensors, count, options_);
}

void register_sgd(pybind11::module_& m) { def_optimizer_step<SgdStep>(m, "sgd_step"); }

}  // namespace fastnn
