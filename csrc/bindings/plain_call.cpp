// Whether an op may run natively without further questions, in one call: from Python the same questions, one
// by one, take longer than a small kernel. Where there is any doubt the answer is no, and fastnn._dispatch
// finds out what is special and whether it matters.
#include <utility>
#include <vector>

#include "bindings/kept.h"
#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "bindings/tensor_device.h"

namespace py = pybind11;

namespace fastnn {

namespace {

class PlainCall {
 public:
  // types: those of plain tensors. states: functions without arguments, each with what it returns (the same
  // object every time) where no transform is active.
  PlainCall(py::frozenset types, const std::vector<std::pair<py::object, py::object>>& states)
      : types_(std::move(types)), states_(states) {}

  // All tensors but the first may be None.
  bool operator()(const py::tuple& tensors) {
    if (skipped_ > 0) return --skipped_, false;
    const bool plain = quiet() && all_plain(tensors.ptr());
    PyErr_Clear();
    return plain;
  }

 private:
  bool quiet() const {
    for (const auto& [function, expected] : states_) {
      PyObject* const state = PyObject_CallNoArgs(function.ptr());
      Py_XDECREF(state);  // compared by address only
      if (state != expected.ptr()) return false;
    }
    return true;
  }

  bool all_plain(PyObject* tensors) {
    DType first = DType::f32, dtype = DType::f32;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tensors); ++i) {
      PyObject* const object = PyTuple_GET_ITEM(tensors, i);
      if (i > 0 && object == Py_None) continue;
      if (!is_plain(object, i ? dtype : first) || (i && dtype != first)) return false;
    }
    return true;
  }

  // A tensor of a floating dtype in memory that kernels of this module can reach. Subclasses answer for what
  // they wrap, and tensors without memory of their own (sparse, nested, batched, functional) not at all or
  // with a null pointer, which empty ones have too.
  bool is_plain(PyObject* object, DType& dtype) {
    if (PySet_Contains(types_.ptr(), reinterpret_cast<PyObject*>(Py_TYPE(object))) != 1) return false;
    const dlpack::ExchangeApi* const api = exchange_api(Py_TYPE(object));
    if (!api) return false;
    dlpack::Tensor tensor;
    if (api->tensor_from_py_object_no_sync(object, &tensor) != 0) {
      // torch takes two milliseconds for this answer (it collects a backtrace): where such tensors are in use
      // the next calls are left to Python at once.
      skipped_ = 1000;
      return false;
    }
    TensorView view;
    return tensor.data && read_device(tensor.device, view) && read_dtype(tensor.dtype, dtype) &&
           is_floating(dtype) && !is_negated(object);
  }

  // The exchange API shows a lazily negated view as the memory that it negates.
  static bool is_negated(PyObject* tensor) {
    static Interned name("is_neg");
    PyObject* const answer = PyObject_CallMethodNoArgs(tensor, name);
    Py_XDECREF(answer);
    return answer != Py_False;
  }

  py::frozenset types_;
  std::vector<std::pair<py::object, py::object>> states_;
  int skipped_ = 0;
};

}  // namespace

void register_plain_call(py::module_& m) {
  py::class_<PlainCall>(m, "PlainCall")
      .def(py::init<py::frozenset, std::vector<std::pair<py::object, py::object>>>())
      .def("__call__", &PlainCall::operator());
}

}  // namespace fastnn
