// Whether an op may run natively without further checks, in one call: from Python the same checks, one by
// one, take longer than a small kernel. In case of doubt the answer is no, and fastnn._dispatch finds out
// what is special and whether it matters.
#include <utility>
#include <vector>

#include "bindings/kept.h"
#include "bindings/plain_tensors.h"
#include "bindings/quick_method.h"
#include "bindings/registration.h"
#include "bindings/tensor_device.h"

namespace py = pybind11;

namespace fastnn {

namespace {

class PlainCall {
 public:
  // types: those of plain tensors. states: functions without arguments, each with what it returns (the same
  // object every time) if no transform is active.
  PlainCall(py::frozenset types, const std::vector<std::pair<py::object, py::object>>& states)
      : plain_(std::move(types)), states_(states) {}

  // All tensors but the first may be None.
  py::object is_plain(PyObject* const* tensors) {
    if (!PyTuple_Check(*tensors)) throw py::type_error("expected a tuple of tensors");
    if (plain_.is_pausing()) return py::bool_(false);
    const bool plain = quiet() && all_plain(*tensors);
    PyErr_Clear();
    return py::bool_(plain);
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

  // A tensor of a floating dtype in memory that this module's kernels can access. Those without memory of
  // their own (sparse, nested, batched, functional) are not read, or have a null pointer, like empty ones.
  bool is_plain(PyObject* object, DType& dtype) {
    dlpack::Tensor tensor;
    TensorView view;
    return plain_.read(object, tensor) && tensor.data && read_device(tensor.device, view) &&
           read_dtype(tensor.dtype, dtype) && is_floating(dtype) && !is_negated(object);
  }

  // The exchange API exposes the memory of a lazily negated view without the negation.
  static bool is_negated(PyObject* tensor) {
    static Interned name("is_neg");
    PyObject* const answer = PyObject_CallMethodNoArgs(tensor, name);
    Py_XDECREF(answer);
    return answer != Py_False;
  }

  PlainTensors plain_;
  std::vector<std::pair<py::object, py::object>> states_;
};

}  // namespace

void register_plain_call(py::module_& m) {
  py::class_<PlainCall> call(m, "PlainCall");
  call.def(py::init<py::frozenset, std::vector<std::pair<py::object, py::object>>>());
  define_quick<PlainCall, 1, &PlainCall::is_plain>(
      call, "__call__", "__call__(self: fastnn._cpu.PlainCall, arg0: tuple) -> bool");
}

}  // namespace fastnn
