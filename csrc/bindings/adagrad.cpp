// adagrad_step: one step of Adagrad on a parameter group.
#include "ops/adagrad/adagrad.h"

#include "bindings/optimizer_group.h"
#include "bindings/registration.h"
#include "core/cpu_dispatch.h"

namespace py = pybind11;

namespace fastnn {

namespace {

class AdagradStep final : public OptimizerStep<AdagradTensor> {
 public:
  AdagradStep(const py::dict& group, const py::dict& state, const py::function& match_layout)
      : OptimizerStep(group, state, match_layout) {
    static PyObject* const lr_key = interned("lr");
    static PyObject* const lr_decay_key = interned("lr_decay");
    static PyObject* const eps_key = interned("eps");
    static PyObject* const weight_decay_key = interned("weight_decay");
    static PyObject* const maximize_key = interned("maximize");
    static PyObject* const differentiable_key = interned("differentiable");
    lr_ = number_option(lr_key);
    lr_decay_ = number_option(lr_decay_key);
    options_.eps = number_option(eps_key);
    options_.l2 = number_option(weight_decay_key);
    options_.maximize = flag_option(maximize_key);
    refuse(differentiable_key);
  }

 private:
  void read_state(PyObject* param, const TensorView& p, AdagradTensor& tensor) override {
    static PyObject* const sum_key = interned("sum");
    PyObject* state = state_of(param);
    tensor.state[0] = state_like(state, sum_key, p);
    tensor.step_size = lr_ / (1 + (next_step(state) - 1) * lr_decay_);
  }

  void update(AdagradTensor* tensors, int64_t count) override {
    // A square root and a division among them.
    const ReleaseGil released(6 * elements());
    cpu_kernels().adagrad.update(tensors, count, options_);
  }

  double lr_ = 0, lr_decay_ = 0;
  AdagradOptions options_{};
};

}  // namespace

void register_adagrad(py::module_& m) { m.def("adagrad_step", &optimizer_step<AdagradStep>); }

}  // namespace fastnn
