// One step of RMSprop on a parameter group.
#pragma once

#include "bindings/optimizer_group.h"
#include "bindings/tensor_device.h"
#include "ops/rmsprop/rmsprop.h"

namespace fastnn {

class RmspropStep final : public OptimizerStep<RmspropTensor> {
 public:
  RmspropStep(const pybind11::dict& group, const pybind11::dict& state,
              const pybind11::function& match_layout)
      : OptimizerStep(group, state, match_layout) {
    static Interned alpha_key("alpha");
    static Interned eps_key("eps");
    static Interned weight_decay_key("weight_decay");
    static Interned momentum_key("momentum");
    static Interned centered_key("centered");
    static Interned maximize_key("maximize");
    static Interned capturable_key("capturable");
    static Interned differentiable_key("differentiable");
    count_on_device(capturable_key);
    options_.lr = read_lr();
    options_.alpha = number_option(alpha_key);
    options_.eps = number_option(eps_key);
    options_.l2 = number_option(weight_decay_key);
    options_.momentum = number_option(momentum_key);
    options_.centered = flag_option(centered_key);
    options_.maximize = flag_option(maximize_key);
    refuse(differentiable_key);
  }

  const RmspropOptions& options() const { return options_; }
  void set_lr(double lr) { options_.lr = lr; }
  // Makes a tensor that has been updated ready for its next step.
  static void advance(RmspropTensor&) {}

 private:
  void read_state(PyObject* param, const TensorView& p, RmspropTensor& tensor) override {
    static Interned square_avg_key("square_avg");
    static Interned buffer_key("momentum_buffer");
    static Interned grad_avg_key("grad_avg");
    PyObject* state = state_of(param);
    int next = 0;
    tensor.state[next++] = state_like(state, square_avg_key, p);
    if (options_.momentum > 0) tensor.state[next++] = state_like(state, buffer_key, p);
    if (options_.centered) tensor.state[next++] = state_like(state, grad_avg_key, p);
    next_step(state, tensor);
  }

  void update(RmspropTensor* tensors, int64_t count) override;

  RmspropOptions options_{};
};

}  // namespace fastnn
