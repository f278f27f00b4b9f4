// adagrad_step, adam_step, rmsprop_step, sgd_step: one step on a parameter group, whose tensors are on a
// device.
#include "ops/optim/optimizers_cuda.h"

#include "bindings/adagrad_step.h"
#include "bindings/adam_step.h"
#include "bindings/cuda/cuda_call.h"
#include "bindings/cuda/registration.h"
#include "bindings/rmsprop_step.h"
#include "bindings/sgd_step.h"

namespace fastnn {

void AdagradStep::update(AdagradTensor* tensors, int64_t count) {
  if (count == 0) return;
  const CudaCall call(device());
  cuda::adagrad_update(tensors, count, options_, scalars(), call.stream());
}

void AdamStep::update(AdamTensor* tensors, int64_t count) {
  if (count == 0) return;
  const CudaCall call(device());
  cuda::adam_update(tensors, count, options_, scalars(), call.stream());
}

void RmspropStep::update(RmspropTensor* tensors, int64_t count) {
  if (count == 0) return;
  const CudaCall call(device());
  cuda::rmsprop_update(tensors, count, options_, scalars(), call.stream());
}

void SgdStep::update(SgdTensor* tensors, int64_t count) {
  if (count == 0) return;
  const CudaCall call(device());
  cuda::sgd_update(tensors, count, options_, scalars(), call.stream());
}

namespace cuda {

void register_optimizers(pybind11::module_& m) {
  def_optimizer_step<AdagradStep>(m, "adagrad_step");
  def_optimizer_step<AdamStep>(m, "adam_step");
  def_optimizer_step<RmspropStep>(m, "rmsprop_step");
  def_optimizer_step<SgdStep>(m, "sgd_step");
}

}  // namespace cuda

}  // namespace fastnn
