// One call a parameter group: reads the group's options and the tensors of its state as torch.optim keeps
// them (gathering them in Python would take longer than the update of a small network), checks all of them,
// and only then writes.
#include "ops/adam/adam.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/cpu_dispatch.h"

namespace py = pybind11;

namespace fastnn {

namespace {

// Why a group is left to torch; nothing has been written when it is thrown.
struct NotCovered : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A parameter has no state yet.
struct Uninitialized {};

PyObject* interned(const char* name) { return PyUnicode_InternFromString(name); }

PyObject* torch_type(const char* module, const char* name) {
  return py::object(py::module_::import(module).attr(name))
      .release()
      .ptr();  // kept for the life of the process
}

std::string text(PyObject* object) { return py::str(py::handle(object)); }

// The entry of a dict, as a borrowed reference; null where there is none.
PyObject* find(PyObject* dict, PyObject* key) {
  PyObject* found = PyDict_GetItemWithError(dict, key);
  if (!found && PyErr_Occurred()) throw py::error_already_set();
  return found;
}

PyObject* entry(PyObject* dict, PyObject* key) {
  PyObject* found = find(dict, key);
  if (!found) throw NotCovered(concat("the optimizer has no entry ", text(key)));
  return found;
}

double number(PyObject* object) {
  const double value = PyFloat_AsDouble(object);
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

bool flag(PyObject* object) {
  const int value = PyObject_IsTrue(object);
  if (value < 0) throw py::error_already_set();
  return value != 0;
}

// Whether the elements fill one block of memory, in any order of the dimensions.
bool is_dense(const TensorView& t) {
  if (t.is_contiguous()) return true;
  int64_t expected = 1;
  for (int filled = 0; filled < t.ndim; ++filled) {
    int d = 0;
    while (d < t.ndim && (t.shape[d] == 1 || t.strides[d] != expected)) ++d;
    if (d == t.ndim) break;
    expected *= t.shape[d];
  }
  return expected == t.numel();
}

bool same_layout(const TensorView& a, const TensorView& b) {
  if (a.ndim != b.ndim) return false;
  for (int d = 0; d < a.ndim; ++d)
    if (a.shape[d] != b.shape[d] || a.strides[d] != b.strides[d]) return false;
  return true;
}

bool same_shape(const TensorView& a, const TensorView& b) {
  return a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

// A tensor whose memory kernels may touch.
TensorView read_plain(PyObject* object) {
  static PyObject* const tensor = torch_type("torch", "Tensor");
  static PyObject* const parameter = torch_type("torch.nn", "Parameter");
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (type != tensor && type != parameter)
    throw NotCovered(concat(Py_TYPE(object)->tp_name, " is a tensor subclass"));
  TensorView view;
  if (!read_tensor(object, view)) throw NotCovered("this torch has no DLPack exchange interface");
  return view;
}

// The negative bit hides from the raw view. Gradients come with it from the imaginary part of a conjugate; an
// optimizer's own state never does.
void check_not_negated(PyObject* tensor) {
  static PyObject* const is_neg = interned("is_neg");
  const auto negated = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, is_neg));
  if (!negated) throw py::error_already_set();
  if (negated.ptr() != Py_False) throw NotCovered("the tensor is a lazily negated view");
}

// The number of the step that is being taken.
double next_step(const TensorView& step) {
  if (step.numel() != 1) throw NotCovered(concat("step has shape ", shape_string(step)));
  switch (step.dtype) {
    case DType::f32:
      return *step.as<float>() + 1;
    case DType::f64:
      return *step.as<double>() + 1;
    default:
      throw NotCovered(concat("step has dtype ", dtype_name(step.dtype)));
  }
}

void increment(const TensorView& step) {
  if (step.dtype == DType::f32)
    *step.as<float>() += 1;
  else
    *step.as<double>() += 1;
}

struct MemoryRange {
  const char* begin;
  const char* end;
  bool written;
};

// Elements are updated in no particular order, so no written memory may be reachable twice.
void check_disjoint(std::vector<MemoryRange>& ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const MemoryRange& a, const MemoryRange& b) { return a.begin < b.begin; });
  const char* end_of_written = nullptr;
  const char* end_of_any = nullptr;
  for (const MemoryRange& range : ranges) {
    if (range.begin < (range.written ? end_of_any : end_of_written))
      throw NotCovered("parameters, gradients or states share memory");
    end_of_any = std::max(end_of_any, range.end);
    if (range.written) end_of_written = std::max(end_of_written, range.end);
  }
}

class AdamStep {
 public:
  AdamStep(const py::dict& group, const py::dict& state, const py::function& match_layout)
      : group_(group.ptr()), state_(state.ptr()), match_layout_(match_layout) {
    read_options();
  }

  // The tensors that were written.
  py::list run() {
    static PyObject* const params_key = interned("params");
    PyObject* params = entry(group_, params_key);
    if (!PyList_Check(params)) throw NotCovered("the parameters of a group are not in a list");
    const auto count = static_cast<size_t>(PyList_GET_SIZE(params));
    tensors_.reserve(count);
    steps_.reserve(count);
    ranges_.reserve(6 * count);
    for (size_t i = 0; i < count; ++i) add(PyList_GET_ITEM(params, static_cast<Py_ssize_t>(i)));
    check_disjoint(ranges_);
    for (const TensorView& step : steps_) increment(step);
    {
      // An element costs about eight simple operations: a square root and a division among them.
      const ReleaseGil released(8 * elements_);
      cpu_kernels().adam.update(tensors_.data(), static_cast<int64_t>(tensors_.size()), options_);
    }
    return written_;
  }

 private:
  void read_options() {
    static PyObject* const keys[] = {interned("lr"),
                                     interned("betas"),
                                     interned("eps"),
                                     interned("weight_decay"),
                                     interned("amsgrad"),
                                     interned("maximize"),
                                     interned("foreach"),
                                     interned("capturable"),
                                     interned("differentiable"),
                                     interned("decoupled_weight_decay")};
    PyObject* lr = entry(group_, keys[0]);
    lr_ = number(lr);
    const auto betas =
        py::reinterpret_steal<py::object>(PySequence_Fast(entry(group_, keys[1]), "betas is no sequence"));
    if (!betas) throw py::error_already_set();
    if (PySequence_Fast_GET_SIZE(betas.ptr()) != 2) throw NotCovered("betas is not a pair");
    PyObject* beta1 = PySequence_Fast_GET_ITEM(betas.ptr(), 0);
    PyObject* beta2 = PySequence_Fast_GET_ITEM(betas.ptr(), 1);
    options_.beta1 = number(beta1);
    options_.beta2 = number(beta2);
    options_.eps = number(entry(group_, keys[2]));
    const double weight_decay = number(entry(group_, keys[3]));
    options_.amsgrad = flag(entry(group_, keys[4]));
    options_.maximize = flag(entry(group_, keys[5]));
    // torch has its own errors for these.
    if (flag(entry(group_, keys[6])) && !(PyFloat_Check(lr) && PyFloat_Check(beta1) && PyFloat_Check(beta2)))
      throw NotCovered("foreach=True is asked for with a tensor for lr or betas");
    if (flag(entry(group_, keys[7]))) throw NotCovered("capturable=True is asked for");
    if (flag(entry(group_, keys[8]))) throw NotCovered("differentiable=True is asked for");
    const bool decoupled = flag(entry(group_, keys[9]));
    options_.l2 = decoupled ? 0 : weight_decay;
    options_.decay = decoupled ? 1 - lr_ * weight_decay : 1;
  }

  TensorView written(PyObject* object) {
    const TensorView view = read_plain(object);
    written_.append(py::handle(object));
    const auto* begin = view.as<const char>();
    if (view.numel() > 0) ranges_.push_back({begin, begin + view.numel() * dtype_size(view.dtype), true});
    return view;
  }

  TensorView state_like(PyObject* state, PyObject* key, const TensorView& param) {
    const TensorView view = written(entry(state, key));
    if (view.dtype != param.dtype)
      throw NotCovered(concat("a parameter of ", dtype_name(param.dtype), " has ", text(key), " of ",
                              dtype_name(view.dtype)));
    if (!same_layout(view, param))
      throw NotCovered(concat(text(key), " has other strides or another shape than its parameter"));
    return view;
  }

  // A gradient in the memory order of its parameter.
  TensorView matching_gradient(PyObject* param, const TensorView& p, py::object grad) {
    TensorView g = read_plain(grad.ptr());
    check_not_negated(grad.ptr());
    if (g.dtype != p.dtype)
      throw NotCovered(
          concat("a parameter of ", dtype_name(p.dtype), " has a gradient of ", dtype_name(g.dtype)));
    if (!same_shape(g, p)) throw NotCovered("a gradient has another shape than its parameter");
    if (!same_layout(g, p)) {
      grad = match_layout_(py::handle(param), grad);
      g = read_plain(grad.ptr());
    }
    const auto* begin = g.as<const char>();
    if (g.numel() > 0) ranges_.push_back({begin, begin + g.numel() * dtype_size(g.dtype), false});
    gradients_.push_back(std::move(grad));
    return g;
  }

  void add(PyObject* param) {
    static PyObject* const grad_key = interned("grad");
    static PyObject* const step_key = interned("step");
    static PyObject* const exp_avg_key = interned("exp_avg");
    static PyObject* const exp_avg_sq_key = interned("exp_avg_sq");
    static PyObject* const max_key = interned("max_exp_avg_sq");
    auto grad = py::reinterpret_steal<py::object>(PyObject_GetAttr(param, grad_key));
    if (!grad) throw py::error_already_set();
    if (grad.is_none()) return;
    PyObject* state = find(state_, param);
    if (!state || !PyDict_Check(state) || PyDict_GET_SIZE(state) == 0) throw Uninitialized();

    const TensorView p = written(param);
    check_not_negated(param);
    if (!is_floating(p.dtype)) throw NotCovered(concat("no kernels for dtype ", dtype_name(p.dtype)));
    if (!is_dense(p)) throw NotCovered("a parameter does not fill one block of memory");
    const TensorView g = matching_gradient(param, p, std::move(grad));
    const TensorView m = state_like(state, exp_avg_key, p);
    const TensorView v = state_like(state, exp_avg_sq_key, p);
    void* vmax = options_.amsgrad ? state_like(state, max_key, p).data : nullptr;
    const TensorView step = written(entry(state, step_key));
    correct_bias(next_step(step));
    steps_.push_back(step);
    tensors_.push_back(
        {p.data, g.data, m.data, v.data, vmax, p.numel(), p.dtype, step_size_, denom_scale_, 0});
    elements_ += p.numel();
  }

  // Parameters that are as far as the one before share its powers.
  void correct_bias(double step) {
    if (step == corrected_step_) return;
    corrected_step_ = step;
    step_size_ = lr_ / (1 - std::pow(options_.beta1, step));
    denom_scale_ = 1 / std::sqrt(1 - std::pow(options_.beta2, step));
  }

  PyObject* group_;
  PyObject* state_;
  const py::function& match_layout_;
  double lr_ = 0;
  AdamOptions options_{};
  double corrected_step_ = std::nan(""), step_size_ = 0, denom_scale_ = 0;
  int64_t elements_ = 0;
  std::vector<AdamTensor> tensors_;
  std::vector<TensorView> steps_;
  std::vector<MemoryRange> ranges_;
  std::vector<py::object> gradients_;  // alive until the kernel has read them
  py::list written_;
};

// The list of tensors that were written; or, with nothing written, a str that says why torch must do the
// step, or None where a parameter has no state yet.
py::object adam_step(const py::dict& group, const py::dict& state, const py::function& match_layout) {
  try {
    return AdamStep(group, state, match_layout).run();
  } catch (const Uninitialized&) {
    return py::none();
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) throw;
    return py::str(py::str(error.value()));
  } catch (const std::runtime_error& reason) {
    return py::str(reason.what());
  }
}

}  // namespace

void register_adam(py::module_& m) { m.def("adam_step", &adam_step); }

}  // namespace fastnn
