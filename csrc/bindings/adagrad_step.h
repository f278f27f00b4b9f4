// One step of Adagrad on a parameter group.
#pragma once

#include "bindings/optimizer_group.h"
#include "bindings/tensor_device.h"
#include "ops/adagrad/adagrad.h"

namespace fastnn {

class AdagradStep final : public OptimizerStep<AdagradTensor> {
 public:
  AdagradStep(const pybind11::dict& group, const pybind11::dict& state,
              const pybind11::function& match_layout)
      : OptimizerStep(group, state, match_layout) {
    static Interned fused_key("fused");
    static Interned lr_decay_key("lr_decay");
    static Interned eps_key("eps");
    static Interned weight_decay_key("weight_decay");
    static Interned maximize_key("maximize");
    static Interned differentiable_key("differentiable");
    if (kHasDevice) count_on_device(fused_key);  // on the CPU torch's fused counts there too
    options_.lr = read_lr();
    options_.lr_decay = number_option(lr_decay_key);
    options_.eps = number_option(eps_key);
    options_.l2 = number_option(weight_decay_key);
    options_.maximize = flag_option(maximize_key);
    refuse(differentiable_key);
  }

  const AdagradOptions& options() const { return options_; }
  void set_lr(double lr) { options_.lr = lr; }
  // Makes a tensor that has been updated ready for its next step.
  static void advance(AdagradTensor& tensor) { ++tensor.step; }

 private:
  void read_state(PyObject* param, const TensorView& p, AdagradTensor& tensor) override {
    static Interned sum_key("sum");
    PyObject* state = state_of(param);
    tensor.state[0] = state_like(state, sum_key, p);
    tensor.step = next_step(state, tensor);
  }

  void update(AdagradTensor* tensors, int64_t count) override;

  AdagradOptions options_{};
};

}  // namespace fastnn
