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
    static PyObject* const alpha_key = interned("alpha");
    static PyObject* const eps_key = interned("eps");
    static PyObject* const weight_decay_key = interned("weight_decay");
    static PyObject* const momentum_key = interned("momentum");
    static PyObject* const centered_key = interned("centered");
    static PyObject* const maximize_key = interned("maximize");
    static PyObject* const capturable_key = interned("capturable");
    static PyObject* const differentiable_key = interned("differentiable");
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
    static PyObject* const square_avg_key = interned("square_avg");
    static PyObject* const buffer_key = interned("momentum_buffer");
    static PyObject* const grad_avg_key = interned("grad_avg");
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
