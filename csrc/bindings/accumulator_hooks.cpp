#include "bindings/accumulator_hooks.h"

#include "bindings/optimizer_group.h"

namespace py = pybind11;

namespace fastnn {

bool has_hooks(PyObject* param) {
  static Interned backward("_backward_hooks"), accumulate("_post_accumulate_grad_hooks");
  for (PyObject* const table : std::initializer_list<PyObject*>{backward, accumulate}) {
    const py::object hooks = owned(PyObject_GetAttr(param, table));
    if (!hooks.is_none() && py::len(hooks) > 0) return true;  // empty if the last one has been removed
  }
  return false;
}

bool AccumulatorHooks::any(PyObject* param, const py::function& look) {
  static Interned use_count("_use_count");
  const long count = PyLong_AsLong(owned(PyObject_CallMethodNoArgs(param, use_count)).ptr());
  if (count == -1 && PyErr_Occurred()) throw py::error_already_set();
  if (count == 1) {
    hooks_ = py::object();
    return false;
  }
  if (!requires_grad(param)) return false;  // checked last: it takes as long as the count
  // Changing a parameter's dtype gives it new memory, and makes torch drop its accumulator.
  static Interned data_ptr("data_ptr");
  const void* const memory = PyLong_AsVoidPtr(owned(PyObject_CallMethodNoArgs(param, data_ptr)).ptr());
  if (!memory && PyErr_Occurred()) throw py::error_already_set();
  if (!is_known(param, memory, count)) {
    param_ = param;
    memory_ = memory;
    count_ = count;
    hooks_ = look(py::handle(param));
  }
  if (!PyTuple_Check(hooks_.ptr())) return true;
  for (const py::handle dict : py::reinterpret_borrow<py::tuple>(hooks_))
    if (py::len(dict) > 0) return true;
  return false;
}

bool AccumulatorHooks::is_known(PyObject* param, const void* memory, long count) const {
  if (!hooks_ || !PyTuple_Check(hooks_.ptr()) || param != param_ || memory != memory_ || count != count_)
    return false;
  for (const py::handle dict : py::reinterpret_borrow<py::tuple>(hooks_))
    if (Py_REFCNT(dict.ptr()) == 1) return false;  // the node that owned it is gone
  return PyTuple_GET_SIZE(hooks_.ptr()) > 0;
}

}  // namespace fastnn
