// rmsprop_step: one step of RMSprop on a parameter group.
#include "bindings/registration.h"
#include "bindings/rmsprop_step.h"
#include "dispatch/cpu_dispatch.h"

namespace fastnn {

void RmspropStep::update(RmspropTensor* tensors, int64_t count) {
  // Including a square root and a division.
  const KernelCall call(8 * elements());
  cpu_kernels().rmsprop.update(tensors, count, options_);
}

void register_rmsprop(pybind11::module_& m) { def_optimizer_step<RmspropStep>(m, "rmsprop_step"); }

}  // namespace fastnn
