#include "bindings/optimizer_group.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "bindings/tensor_caster.h"
#include "bindings/tensor_device.h"
#include "core/check.h"

namespace py = pybind11;

namespace fastnn {

namespace {

std::string text(PyObject* object) { return py::str(py::handle(object)); }

// The entry of a dict, as a borrowed reference; null if there is none.
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

bool same_layout(const TensorView& a, const TensorView& b) {
  if (a.ndim != b.ndim) return false;
  for (int d = 0; d < a.ndim; ++d)
    if (a.shape[d] != b.shape[d] || a.strides[d] != b.strides[d]) return false;
  return true;
}

bool same_shape(const TensorView& a, const TensorView& b) {
  return a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

// Whether torch refuses to hand over the memory; any other error is unrelated.
bool refuses_memory(const py::error_already_set& error) {
  for (PyObject* type : {PyExc_RuntimeError, PyExc_BufferError, PyExc_TypeError, PyExc_ValueError})
    if (error.matches(type)) return true;
  return false;
}

// Like read_tensor(), but a tensor that cannot be read (sparse, without memory, of another dtype or device)
// is one that torch must handle.
bool readable(PyObject* object, TensorView& view) {
  try {
    return read_tensor(object, view);
  } catch (const py::error_already_set& error) {  // torch's own, when asked for the memory
    if (!refuses_memory(error)) throw;
    throw NotCovered(text(error.value().ptr()));
  } catch (const Unreadable& error) {
    throw NotCovered(error.what());
  }
}

}  // namespace

py::object owned(PyObject* object) {
  if (!object) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

bool requires_grad(PyObject* tensor) {
  static Interned key("requires_grad");
  return owned(PyObject_GetAttr(tensor, key)).ptr() == Py_True;
}

TensorView read_plain(PyObject* object) {
  static TorchAttribute tensor("torch", "Tensor");
  static TorchAttribute parameter("torch.nn", "Parameter");
  PyTypeObject* const type = Py_TYPE(object);
  if (type != tensor.as_type() && type != parameter.as_type())
    throw NotCovered(concat(type->tp_name, PyType_IsSubtype(type, tensor.as_type()) ? " is a tensor subclass"
                                                                                    : " is not a tensor"));
  TensorView view;
  if (!readable(object, view)) throw NotCovered("this torch has no DLPack exchange interface");
  return view;
}

// A raw view does not show the negative bit. Gradients get it from the imaginary part of a conjugate; an
// optimizer's own state never does.
void check_not_negated(PyObject* tensor) {
  static Interned is_neg("is_neg");
  if (owned(PyObject_CallMethodNoArgs(tensor, is_neg)).ptr() != Py_False)
    throw NotCovered("the tensor is a lazily negated view");
}

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

// Without waiting for a device.
double number(PyObject* object) {
  // Torch accepts one for some of its sums and refuses it for others.
  if (PyBool_Check(object)) throw NotCovered("an option is a bool, not a number");
  if (!PyFloat_Check(object) && !PyLong_Check(object)) {
    const PyNumberMethods* const methods = Py_TYPE(object)->tp_as_number;
    if (!methods || (!methods->nb_float && !methods->nb_index))
      throw NotCovered(concat("an option is a ", Py_TYPE(object)->tp_name, ", not a number"));
    TensorView view;
    if (readable(object, view)) {
      if (!host_can_read(view)) throw NotCovered("an option other than lr is a tensor on the device");
      if (view.numel() != 1) throw NotCovered("an option is a tensor of several numbers");
    }
  }
  const double value = PyFloat_AsDouble(object);
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

OptimizerGroup::OptimizerGroup(const py::dict& group, const py::dict& state, const py::function& match_layout)
    : group_(group.ptr()), state_(state.ptr()), match_layout_(match_layout) {}

PyObject* OptimizerGroup::option(PyObject* key) const { return entry(group_, key); }

bool OptimizerGroup::flag_option(PyObject* key) const {
  const int value = PyObject_IsTrue(option(key));
  if (value < 0) throw py::error_already_set();
  return value != 0;
}

void OptimizerGroup::refuse(PyObject* key) const {
  if (flag_option(key)) throw NotCovered(concat(text(key), "=True is set"));
}

double OptimizerGroup::read_lr() {
  static Interned key("lr");
  PyObject* lr = option(key);
  if (!kHasDevice || PyFloat_Check(lr)) return number(lr);
  TensorView view;
  if (!read_tensor(lr, view) || (host_can_read(view) && !device_steps_)) return number(lr);
  if (view.numel() != 1 || (view.dtype != DType::f32 && view.dtype != DType::f64))
    throw NotCovered("lr is a tensor, but not one number of float32 or float64");
  scalars_.lr = view.data;
  scalars_.lr_is_double = view.dtype == DType::f64;
  scalar_views_.push_back(view);
  return std::nan("");
}

void OptimizerGroup::count_on_device(PyObject* key) {
  if (!kHasDevice) return refuse(key);
  if (flag_option(key)) device_steps_ = true;
}

const float* OptimizerGroup::read_scalar(const py::object& object, const char* name) {
  if (object.is_none()) return nullptr;
  if (!kHasDevice) throw NotCovered("a GradScaler left the scaling to the optimizer");
  const TensorView view = read_plain(object.ptr());
  if (view.numel() != 1 || view.dtype != DType::f32)
    throw NotCovered(concat(name, " is not one number of float32"));
  scalar_views_.push_back(view);
  return view.as<float>();
}

void OptimizerGroup::set_scaling(const py::object& grad_scale, const py::object& found_inf) {
  scalars_.grad_scale = read_scalar(grad_scale, "grad_scale");
  scalars_.found_inf = read_scalar(found_inf, "found_inf");
}

void OptimizerGroup::set_numbers(const py::object& object, int64_t count) {
  if (object.is_none()) return;
  if (!kHasDevice || count == 0) throw NotCovered("this optimizer reads no options on the device");
  const TensorView view = read_plain(object.ptr());
  if (view.numel() != count || view.dtype != DType::f64 || !view.is_contiguous())
    throw NotCovered(concat("numbers is not a row of ", count, " float64"));
  scalar_views_.push_back(view);
  scalars_.numbers = view.as<double>();
}

PyObject* OptimizerGroup::parameters() {
  static Interned key("params");
  PyObject* params = option(key);
  if (!PyList_Check(params)) throw NotCovered("the parameters of a group are not in a list");
  const auto count = static_cast<size_t>(PyList_GET_SIZE(params));
  steps_.reserve(count);
  gradients_.reserve(count);
  ranges_.reserve((4 + kMaxStates) * count);
  return params;
}

py::object OptimizerGroup::gradient(PyObject* param) {
  static Interned key("grad");
  return owned(PyObject_GetAttr(param, key));
}

TensorView OptimizerGroup::read_written(PyObject* object) {
  const TensorView view = read_plain(object);
  written_.append(py::handle(object));
  ranges_.add(view, true);
  return view;
}

TensorView OptimizerGroup::read_param(PyObject* param, OptimizerTensor& tensor) {
  const TensorView p = read_written(param);
  check_not_negated(param);
  if (!is_floating(p.dtype)) throw NotCovered(concat("no kernels for dtype ", dtype_name(p.dtype)));
  if (!is_dense(p)) throw NotCovered("a parameter does not fill one block of memory");
  if (kHasDevice && p.cuda_device == TensorView::kNoCudaDevice) throw NotCovered("devices are mixed");
  if (!any_parameter_) device_ = p.cuda_device;
  if (p.cuda_device != device_) throw NotCovered("devices are mixed");
  any_parameter_ = true;
  tensor.param = p.data;
  tensor.numel = p.numel();
  tensor.dtype = p.dtype;
  tensor.float_state = state_dtype(p) != p.dtype;
  elements_ += p.numel();
  return p;
}

void OptimizerGroup::read_gradient(PyObject* param, const TensorView& p, py::object grad,
                                   OptimizerTensor& tensor) {
  TensorView g = read_plain(grad.ptr());
  check_not_negated(grad.ptr());
  if (g.dtype != p.dtype)
    throw NotCovered(
        concat("a parameter of ", dtype_name(p.dtype), " has a gradient of ", dtype_name(g.dtype)));
  if (g.cuda_device != p.cuda_device) throw NotCovered("a gradient is on another device than its parameter");
  if (!same_shape(g, p)) throw NotCovered("a gradient has another shape than its parameter");
  if (!same_layout(g, p)) {
    if (scalars_.grad_scale)
      throw NotCovered("a gradient to be unscaled has other strides than its parameter");
    grad = match_layout_(py::handle(param), grad);
    g = read_plain(grad.ptr());
  }
  if (scalars_.grad_scale) written_.append(grad);
  ranges_.add(g, scalars_.grad_scale != nullptr);
  gradients_.push_back(std::move(grad));
  tensor.grad = g.data;
}

PyObject* OptimizerGroup::find_state(PyObject* param) {
  PyObject *key, *state;
  for (Py_ssize_t next = position_; in_order_ && PyDict_Next(state_, &next, &key, &state); position_ = next)
    if (key == param) return state;
  in_order_ = false;
  return find(state_, param);
}

PyObject* OptimizerGroup::state_of(PyObject* param) {
  PyObject* state = find_state(param);
  if (!state || !PyDict_Check(state) || PyDict_GET_SIZE(state) == 0) throw Uninitialized();
  return state;
}

DType OptimizerGroup::state_dtype(const TensorView& param) const {
  return float_state_ && dtype_size(param.dtype) == 2 ? DType::f32 : param.dtype;
}

void OptimizerGroup::read_master(PyObject* param, const TensorView& p, OptimizerTensor& tensor) {
  static Interned key("master_param");
  if (!masters_ || !tensor.float_state) return;
  PyObject* state = state_of(param);
  if (!find(state, key)) throw Uninitialized();
  tensor.master = static_cast<float*>(state_like(state, key, p));
}

void OptimizerGroup::check_like(const TensorView& view, PyObject* key, const TensorView& param) const {
  const DType wanted = state_dtype(param);
  if (view.dtype != wanted && view.dtype == param.dtype) throw Uninitialized();
  if (view.dtype != wanted)
    throw NotCovered(concat("a parameter of ", dtype_name(param.dtype), " has ", text(key), " of ",
                            dtype_name(view.dtype)));
  if (view.cuda_device != param.cuda_device)
    throw NotCovered(concat(text(key), " is on another device than its parameter"));
  if (!same_layout(view, param))
    throw NotCovered(concat(text(key), " has other strides or another shape than its parameter"));
}

void* OptimizerGroup::state_like(PyObject* state, PyObject* key, const TensorView& param) {
  const TensorView view = read_written(entry(state, key));
  check_like(view, key, param);
  return view.data;
}

void* OptimizerGroup::state_or_new(PyObject* param, PyObject* key, const TensorView& p, bool& is_new) {
  PyObject* const known = find_state(param);
  py::object state = known ? py::reinterpret_borrow<py::object>(known) : py::dict();
  if (!PyDict_Check(state.ptr())) throw NotCovered("the state of a parameter is not a dict");
  PyObject* found = find(state.ptr(), key);
  is_new = !found || found == Py_None;
  if (!is_new) return state_like(state.ptr(), key, p);

  // A GradScaler may skip the update that would fill it.
  static TorchAttribute zeros_like("torch", "zeros_like");
  static TorchAttribute empty_like("torch", "empty_like");
  static TorchAttribute float32("torch", "float32");
  const py::handle make = scalars_.found_inf ? zeros_like : empty_like;
  py::object tensor = state_dtype(p) == p.dtype
                          ? make(py::handle(param))
                          : make(py::handle(param), py::arg("dtype") = py::handle(float32));
  const TensorView view = read_written(tensor.ptr());
  check_like(view, key, p);
  new_states_.push_back(
      {param, std::move(state), py::reinterpret_borrow<py::object>(key), std::move(tensor)});
  return view.data;
}

double OptimizerGroup::next_step(PyObject* state, OptimizerTensor& tensor) {
  static Interned key("step");
  const TensorView step = read_written(entry(state, key));
  if (step.numel() != 1) throw NotCovered(concat("step has shape ", shape_string(step)));
  if (step.dtype != DType::f32 && step.dtype != DType::f64)
    throw NotCovered(concat("step has dtype ", dtype_name(step.dtype)));
  if (device_steps_) {
    if (step.dtype != DType::f32 || step.cuda_device != device_)
      throw NotCovered("step is not a number of float32 on the device of its parameter");
    tensor.device_step = step.as<float>();
    return 0;
  }
  if (!host_can_read(step)) throw NotCovered("step is on the device, which capturable and fused are not");
  if (scalars_.found_inf) throw NotCovered("a step that may be skipped is counted on the host");
  const double taken = step.dtype == DType::f32 ? *step.as<float>() : *step.as<double>();
  // Its corrections would be infinite or NaN: torch raises an error for it.
  if (taken < 0) throw NotCovered(concat("step is ", taken));
  steps_.push_back(step);
  return taken + 1;
}

// Elements are updated in no particular order, so no written memory may be reachable twice.
void OptimizerGroup::check_disjoint() {
  for (const TensorView& view : scalar_views_)
    if (any_parameter_ && view.cuda_device != device_)
      throw NotCovered("lr or the GradScaler's numbers are on another device");
  if (!ranges_.disjoint()) throw NotCovered("parameters, gradients or states share memory");
}

void OptimizerGroup::commit() {
  for (const NewState& made : new_states_) {
    PyObject* const state = PyDict_SetDefault(state_, made.param, made.state.ptr());
    if (!state || PyDict_SetItem(state, made.key.ptr(), made.tensor.ptr()) != 0)
      throw py::error_already_set();
  }
  count_step();
}

void OptimizerGroup::count_step() {
  for (const TensorView& step : steps_) {
    if (step.dtype == DType::f32)
      *step.as<float>() += 1;
    else
      *step.as<double>() += 1;
  }
}

}  // namespace fastnn
