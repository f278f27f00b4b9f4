// One call per parameter group: reads the group's options and the tensors of its state as torch.optim keeps
// them (gathering them in Python would take longer than the update of a small network), checks all of them,
// and only then writes.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/kept.h"
#include "bindings/memory_ranges.h"
#include "core/tensor_view.h"
#include "ops/optim/multi_tensor.h"

namespace fastnn {

// Why a group is left to torch; nothing has been written when it is thrown.
struct NotCovered : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void refuse_if(bool condition, const char* why) {
  if (condition) throw NotCovered(why);
}

// A parameter has no state yet, or not in the required type.
struct Uninitialized {};

// Calls read(), which writes nothing. Returns nullopt if that succeeds; a str that says why torch must do the
// work if it throws NotCovered; None if it throws Uninitialized. Any other exception is an error, of the
// library or of the user's objects, and propagates.
template <class Read>
std::optional<pybind11::object> why_not(const Read& read) {
  try {
    read();
  } catch (const Uninitialized&) {
    return pybind11::none();
  } catch (const NotCovered& reason) {
    return pybind11::str(reason.what());
  }
  return std::nullopt;
}

// The value of an option; throws NotCovered if it is not a number.
double number(PyObject* object);

pybind11::object owned(PyObject* object);

bool requires_grad(PyObject* tensor);

// A tensor whose memory kernels may touch: not a subclass, and with memory of its own. Throws NotCovered.
TensorView read_plain(PyObject* object);
void check_not_negated(PyObject* tensor);

// Whether the elements fill one block of memory, in any order of the dimensions.
bool is_dense(const TensorView& t);

// What the steps of all optimizers share, whatever the update.
class OptimizerGroup {
 public:
  // `match_layout(param, grad)` returns a copy of the gradient in the memory order of its parameter.
  OptimizerGroup(const pybind11::dict& group, const pybind11::dict& state,
                 const pybind11::function& match_layout);

  // What a GradScaler leaves to the optimizer: tensors on the device of the parameters, or None. After this
  // the step writes the gradients too.
  void set_scaling(const pybind11::object& grad_scale, const pybind11::object& found_inf);

  // For 16-bit parameters: float32 state, and also float32 master weights.
  void set_precision(bool float_state, bool masters) {
    float_state_ = float_state;
    masters_ = masters;
  }

  // DeviceScalars::numbers: a tensor of `count` float64, or None. A step captured in a CUDA graph reads the
  // group's current options there at each replay.
  void set_numbers(const pybind11::object& numbers, int64_t count);

 protected:
  PyObject* option(PyObject* key) const;
  double number_option(PyObject* key) const { return number(option(key)); }
  bool flag_option(PyObject* key) const;
  // Leaves a group with the option `key` set to torch.
  void refuse(PyObject* key) const;
  // The learning rate; NaN if it is read on the device.
  double read_lr();
  // Steps are counted on the device if the option `key` is set; without a device the group is left to torch.
  void count_on_device(PyObject* key);

  // The list of the parameters.
  PyObject* parameters();
  // The gradient of a parameter, or None.
  static pybind11::object gradient(PyObject* param);
  // Fill the fields of an OptimizerTensor that all optimizers have, except its state.
  TensorView read_param(PyObject* param, OptimizerTensor& tensor);
  void read_gradient(PyObject* param, const TensorView& p, pybind11::object grad, OptimizerTensor& tensor);

  // The state of a parameter; throws Uninitialized if it has none.
  PyObject* state_of(PyObject* param);
  // The dtype that the state of a parameter has.
  DType state_dtype(const TensorView& param) const;
  // The float32 copy of a 16-bit parameter, if there should be one.
  void read_master(PyObject* param, const TensorView& p, OptimizerTensor& tensor);
  // An entry of the state with `state_dtype` and the memory order of its parameter.
  void* state_like(PyObject* state, PyObject* key, const TensorView& param);
  // The same, but a missing or None entry is created, to be filled by the first update.
  void* state_or_new(PyObject* param, PyObject* key, const TensorView& p, bool& is_new);
  // The number of the present step; 0 if tensor.device_step counts it.
  double next_step(PyObject* state, OptimizerTensor& tensor);

  // Throws if written memory is reachable twice.
  void check_disjoint();
  // Other memory that the step reads.
  void also_reads(const TensorView& view) { ranges_.add(view, false); }
  void also_writes(const TensorView& view) { ranges_.add(view, true); }
  void also_touches(const OptimizerGroup& other) { ranges_.add(other.ranges_); }
  // Counts the step and stores the new states: the update follows.
  void commit();
  // Counts one more step. Needs no GIL.
  void count_step();

  int64_t elements() const { return elements_; }
  int device() const { return device_; }  // of the parameters: a CUDA device, or TensorView::kNoCudaDevice
  const DeviceScalars& scalars() const { return scalars_; }
  // Whether a step, the learning rate or other options are known only on the device.
  bool asks_device() const { return device_steps_ || scalars_.lr || scalars_.numbers; }
  const pybind11::list& written() const { return written_; }

 private:
  // `state` is that of `param`, or becomes it if there is none yet.
  struct NewState {
    PyObject* param;
    pybind11::object state, key, tensor;
  };

  // The entry of a parameter, or null. States are usually in the order of the parameters, and a look-up by
  // key calls Tensor.__hash__, which is written in Python.
  PyObject* find_state(PyObject* param);
  TensorView read_written(PyObject* object);
  void check_like(const TensorView& view, PyObject* key, const TensorView& param) const;
  // A float32 number on the device.
  const float* read_scalar(const pybind11::object& object, const char* name);

  PyObject* group_;
  PyObject* state_;
  const pybind11::function& match_layout_;
  bool in_order_ = true;
  Py_ssize_t position_ = 0;  // in state_, of the entry found last
  int64_t elements_ = 0;
  int device_ = TensorView::kNoCudaDevice;
  bool any_parameter_ = false, device_steps_ = false, float_state_ = false, masters_ = false;
  DeviceScalars scalars_ = {};
  std::vector<TensorView> scalar_views_;  // of `scalars_`, whose device is checked last
  std::vector<TensorView> steps_;
  MemoryRanges ranges_;
  std::vector<pybind11::object> gradients_;  // alive until the kernel has read them
  std::vector<NewState> new_states_;
  pybind11::list written_;
};

// The step of one optimizer; subclasses add its options, state and kernel.
template <class Tensor>
class OptimizerStep : protected OptimizerGroup {
 public:
  using OptimizerGroup::OptimizerGroup;
  virtual ~OptimizerStep() = default;
  using OptimizerGroup::set_numbers;
  using OptimizerGroup::set_precision;
  using OptimizerGroup::set_scaling;
  static constexpr int64_t kNumbers = 0;  // of DeviceScalars::numbers; 0 if the kernel reads none

  // For a caller that computes the gradients and calls the kernel itself: calls visit(param, view, tensor)
  // for every parameter of the group. check_disjoint() and commit() follow, then the update. Returns whether
  // all of them have their state; the tensors of the others lack it.
  template <class Accept, class Visit>
  bool each_parameter(const Accept& accept, const Visit& visit) {
    bool all = true;
    PyObject* params = parameters();
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i) {
      PyObject* param = PyList_GET_ITEM(params, i);
      accept(param);
      Tensor tensor{};
      const TensorView p = read_param(param, tensor);
      try {
        read_state(param, p, tensor);
      } catch (const Uninitialized&) {
        all = false;
      }
      visit(param, p, tensor);
    }
    return all;
  }
  using OptimizerGroup::also_reads;
  using OptimizerGroup::also_writes;
  using OptimizerGroup::check_disjoint;
  void also_touches(const OptimizerStep& other) { OptimizerGroup::also_touches(other); }
  using OptimizerGroup::commit;
  using OptimizerGroup::count_step;
  using OptimizerGroup::written;

  // Reads and checks everything; nothing has been written when it throws.
  void prepare() {
    PyObject* params = parameters();
    const Py_ssize_t count = PyList_GET_SIZE(params);
    tensors_.reserve(static_cast<size_t>(count));
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject* param = PyList_GET_ITEM(params, i);
      pybind11::object grad = gradient(param);
      if (grad.is_none()) continue;
      Tensor tensor{};
      const TensorView p = read_param(param, tensor);
      read_gradient(param, p, std::move(grad), tensor);
      read_state(param, p, tensor);
      read_master(param, p, tensor);
      tensors_.push_back(tensor);
    }
    check_disjoint();
  }

  // The same with gradients that are elsewhere: gradient_of(param) is null if there is none, else the address
  // of one with the parameter's dtype and memory order.
  template <class GradientOf>
  void prepare_with(const GradientOf& gradient_of) {
    PyObject* params = parameters();
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i) {
      PyObject* param = PyList_GET_ITEM(params, i);
      const void* const grad = gradient_of(param);
      if (!grad) continue;
      Tensor tensor{};
      const TensorView p = read_param(param, tensor);
      tensor.grad = grad;
      read_state(param, p, tensor);
      tensors_.push_back(tensor);
    }
    check_disjoint();
  }

  // Takes the step; returns the tensors that were written.
  pybind11::list run() {
    commit();
    update(tensors_.data(), static_cast<int64_t>(tensors_.size()));
    return written();
  }

 private:
  virtual void read_state(PyObject* param, const TensorView& p, Tensor& tensor) = 0;
  // Each module defines it for each optimizer: csrc/bindings/<op>.cpp, csrc/bindings/cuda/optimizers.cpp.
  virtual void update(Tensor* tensors, int64_t count) = 0;

  std::vector<Tensor> tensors_;
};

// The list of tensors that were written; or, with nothing written, a str that says why torch must do the
// step, or None if a parameter has no state yet.
template <class Step>
pybind11::object optimizer_step(const pybind11::dict& group, const pybind11::dict& state,
                                const pybind11::function& match_layout, const pybind11::object& grad_scale,
                                const pybind11::object& found_inf, bool float_state, bool masters,
                                const pybind11::object& numbers) {
  namespace py = pybind11;
  std::optional<Step> step;
  const auto reason = why_not([&] {
    step.emplace(group, state, match_layout);
    step->set_scaling(grad_scale, found_inf);
    step->set_precision(float_state, masters);
    step->set_numbers(numbers, Step::kNumbers);
    step->prepare();
  });
  return reason ? *reason : step->run();
}

template <class Step>
void def_optimizer_step(pybind11::module_& m, const char* name) {
  namespace py = pybind11;
  m.def(name, &optimizer_step<Step>, py::arg("group"), py::arg("state"), py::arg("match_layout"),
        py::arg("grad_scale") = py::none(), py::arg("found_inf") = py::none(), py::arg("float_state") = false,
        py::arg("masters") = false, py::arg("numbers") = py::none());
}

}  // namespace fastnn
