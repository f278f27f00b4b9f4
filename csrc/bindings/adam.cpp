// adam_step: one step of Adam or AdamW on a parameter group.
#include "bindings/adam_step.h"
#include "bindings/registration.h"
#include "dispatch/cpu_dispatch.h"

namespace fastnn {

void AdamStep::update(AdamTensor* tensors, int64_t count) {
  // An element costs about eight simple operations, including a square root and a division.
  const KernelCall call(8 * elements());
  cpu_kernels().adam.update(tensors, count, options_);
}

void register_adam(pybind11::module_& m) { def_optimizer_step<AdamStep>(m, "adam_step"); }

}  // namespace fastnn
