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

namespace {

// Device memory for an update of `count` tensors: allocated by torch, and freed in stream order. `written`
// has a tensor on the device.
class DeviceMemory {
 public:
  DeviceMemory(const pybind11::list& written, int64_t count) {
    if (count == 0) return;
    static TorchAttribute uint8("torch", "uint8");
    tensor_ = pybind11::object(written[0].attr("new_empty"))(
        count * cuda::kCommonBytes, pybind11::arg("dtype") = pybind11::handle(uint8));
    data_ = read_plain(tensor_.ptr()).data;
  }
  void* data() const { return data_; }

 private:
  pybind11::object tensor_;
  void* data_ = nullptr;
};

}  // namespace

void AdagradStep::update(AdagradTensor* tensors, int64_t count) {
  if (count == 0) return;
  const CudaCall call(device());
  const DeviceMemory memory(written(), asks_device() ? count : 0);
  cuda::adagrad_update(tensors, count, options_, scalars(), memory.data(), call.stream());
}

void AdamStep::update(AdamTensor* tensors, int64_t count) {
  if (count == 0) return;
  const CudaCall call(device());
  const DeviceMemory memory(written(), asks_device() ? count : 0);
  cuda::adam_update(tensors, count, options_, scalars(), memory.data(), call.stream());
}

void RmspropStep::update(RmspropTensor* tensors, int64_t count) {
  if (count == 0) return;
  const CudaCall call(device());
  const DeviceMemory memory(written(), asks_device() ? count : 0);
  cuda::rmsprop_update(tensors, count, options_, scalars(), memory.data(), call.stream());
}

void SgdStep::update(SgdTensor* tensors, int64_t count) {
  if (count == 0) return;
  const CudaCall call(device());
  const DeviceMemory memory(written(), asks_device() ? count : 0);
  cuda::sgd_update(tensors, count, options_, scalars(), memory.data(), call.stream());
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
