// One step of SGD on a parameter group.
#pragma once

#include "bindings/optimizer_group.h"
#include "ops/sgd/sgd.h"

namespace fastnn {

class SgdStep final : public OptimizerStep<SgdTensor> {
 public:
  static constexpr int64_t kNumbers = 4;
  SgdStep(const pybind11::dict& group, const pybind11::dict& state, const pybind11::function& match_layout)
      : OptimizerStep(group, state, match_layout) {
    static Interned momentum_key("momentum");
    static Interned dampening_key("dampening");
    static Interned weight_decay_key("weight_decay");
    static Interned nesterov_key("nesterov");
    static Interned maximize_key("maximize");
    static Interned differentiable_key("differentiable");
    options_.lr = read_lr();
    options_.momentum = number_option(momentum_key);
    options_.dampening = number_option(dampening_key);
    options_.l2 = number_option(weight_decay_key);
    options_.nesterov = flag_option(nesterov_key);
    options_.maximize = flag_option(maximize_key);
    refuse(differentiable_key);
  }

 public:
  const SgdOptions& options() const { return options_; }
  void set_lr(double lr) { options_.lr = lr; }
  // Makes a tensor that has been updated ready for its next step.
  static void advance(SgdTensor& tensor) { tensor.first = false; }

 private:
  void read_state(PyObject* param, const TensorView& p, SgdTensor& tensor) override {
    static Interned buffer_key("momentum_buffer");
    if (options_.momentum == 0) return;
    tensor.state[0] = state_or_new(param, buffer_key, p, tensor.first);
    // A skipped step leaves the buffer at 0, from which the next one continues like a first step, except for
    // the dampening.
    if (tensor.first && options_.dampening != 0 && scalars().found_inf)
      throw NotCovered("a first step, which is not dampened, may be skipped");
  }

  void update(SgdTensor* tensors, int64_t count) override;

  SgdOptions options_{};
};

}  // namespace fastnn
