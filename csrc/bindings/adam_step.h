// One step of Adam or AdamW on a parameter group.
#pragma once

#include "bindings/optimizer_group.h"
#include "bindings/tensor_device.h"
#include "ops/adam/adam_scales.h"

namespace fastnn {

class AdamStep final : public OptimizerStep<AdamTensor> {
 public:
  static constexpr int64_t kNumbers = 5;
  AdamStep(const pybind11::dict& group, const pybind11::dict& state, const pybind11::function& match_layout)
      : OptimizerStep(group, state, match_layout) {
    static Interned lr_key("lr");
    static Interned fused_key("fused");
    static Interned betas_key("betas");
    static Interned eps_key("eps");
    static Interned weight_decay_key("weight_decay");
    static Interned amsgrad_key("amsgrad");
    static Interned maximize_key("maximize");
    static Interned foreach_key("foreach");
    static Interned capturable_key("capturable");
    static Interned differentiable_key("differentiable");
    static Interned decoupled_key("decoupled_weight_decay");
    count_on_device(capturable_key);
    if (kHasDevice) count_on_device(fused_key);  // on the CPU torch's fused counts there too
    PyObject* lr = option(lr_key);
    options_.lr = read_lr();
    const auto betas = pybind11::reinterpret_steal<pybind11::object>(
        PySequence_Fast(option(betas_key), "betas is not a sequence"));
    if (!betas) throw pybind11::error_already_set();
    if (PySequence_Fast_GET_SIZE(betas.ptr()) != 2) throw NotCovered("betas is not a pair");
    PyObject* beta1 = PySequence_Fast_GET_ITEM(betas.ptr(), 0);
    PyObject* beta2 = PySequence_Fast_GET_ITEM(betas.ptr(), 1);
    options_.beta1 = number(beta1);
    options_.beta2 = number(beta2);
    options_.eps = number_option(eps_key);
    options_.weight_decay = number_option(weight_decay_key);
    options_.amsgrad = flag_option(amsgrad_key);
    options_.maximize = flag_option(maximize_key);
    // torch has its own errors for these.
    if (flag_option(foreach_key) && !(PyFloat_Check(lr) && PyFloat_Check(beta1) && PyFloat_Check(beta2)))
      throw NotCovered("foreach=True is set, and lr or betas is a tensor");
    refuse(differentiable_key);
    options_.decoupled = flag_option(decoupled_key);
  }

 public:
  const AdamOptions& options() const { return options_; }
  // For the parameters that are read or advanced from now on.
  void set_lr(double lr) {
    options_.lr = lr;
    corrected_step_ = std::nan("");
  }
  // Makes a tensor that has been updated ready for its next step.
  void advance(AdamTensor& tensor) {
    ++tensor.step;
    set_scales(tensor);
  }

 private:
  void read_state(PyObject* param, const TensorView& p, AdamTensor& tensor) override {
    static Interned exp_avg_key("exp_avg");
    static Interned exp_avg_sq_key("exp_avg_sq");
    static Interned max_key("max_exp_avg_sq");
    PyObject* state = state_of(param);
    tensor.state[0] = state_like(state, exp_avg_key, p);
    tensor.state[1] = state_like(state, exp_avg_sq_key, p);
    if (options_.amsgrad) tensor.state[2] = state_like(state, max_key, p);
    tensor.step = next_step(state, tensor);
    set_scales(tensor);
  }

  void set_scales(AdamTensor& tensor) {
    if (tensor.step != corrected_step_) {  // parameters at the same step as the previous one share its powers
      corrected_step_ = tensor.step;
      scales_ = FASTNN_ISA::adam_scales(options_, tensor.step);
    }
    tensor.step_size = scales_.step_size;
    tensor.denom_scale = scales_.denom_scale;
  }

  void update(AdamTensor* tensors, int64_t count) override;

  AdamOptions options_{};
  double corrected_step_ = std::nan("");
  FASTNN_ISA::AdamScales scales_{};
};

}  // namespace fastnn
