// adagrad_step: one step of Adagrad on a parameter group.
#include "bindings/adagrad_step.h"
#include "bindings/registration.h"
#include "dispatch/cpu_dispatch.h"

namespace fastnn {

void AdagradStep::update(AdagradTensor* tensors, int64_t count) {
  // Including a square root and a division.
  const KernelCall call(6 * elements());
  cpu_kernels().adagrad.update(tensors, count, options_);
}

void register_adagrad(pybind11::module_& m) { def_optimizer_step<AdagradStep>(m, "adagrad_step"); }

}  // namespace fastnn
