// rmsprop_step: one step of RMSprop on a parameter group.
#include "ops/rmsprop/rmsprop.h"

#include "bindings/optimizer_group.h"
#include "bindings/registration.h"
#include "core/cpu_dispatch.h"

namespace py = pybind11;

namespace fastnn {

namespace {

class RmspropStep final : public OptimizerStep<RmspropTensor> {
 public:
  RmspropStep(const py::dict& group, const py::dict& state, const py::function& match_layout)
      : OptimizerStep(group, state, match_layout) {
    static PyObject* const lr_key = interned("lr");
    static PyObject* const alpha_key = interned("alpha");
    static PyObject* const eps_key = interned("eps");
    static PyObject* const weight_decay_key = interned("weight_decay");
    static PyObject* const momentum_key = interned("momentum");
    static PyObject* const centered_key = interned("centered");
    static PyObject* const maximize_key = interned("maximize");
    static PyObject* const capturable_key = interned("capturable");
    static PyObject* const differentiable_key = interned("differentiable");
    options_.lr = number_option(lr_key);
    options_.alpha = number_option(alpha_key);
    options_.eps = number_option(eps_key);
    options_.l2 = number_option(weight_decay_key);
    options_.momentum = number_option(momentum_key);
    options_.centered = flag_option(centered_key);
    options_.maximize = flag_option(maximize_key);
    refuse(capturable_key);
    refuse(differentiable_key);
  }

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
    next_step(state);
  }

  void update(RmspropTensor* tensors, int64_t count) override {
    // A square root and a division among them.
    const ReleaseGil released(8 * elements());
    cpu_kernels().rmsprop.update(tensors, count, options_);
  }

  RmspropOptions options_{};
};

}  // namespace

void register_rmsprop(py::module_& m) { m.def("rmsprop_step", &optimizer_step<RmspropStep>); }

}  // namespace fastnn
