// Reads plain tensors without calling Python, and without an error for anything else.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>

#include "bindings/tensor_caster.h"

namespace fastnn {

class PlainTensors {
 public:
  // types: those of plain tensors. Subclasses may represent other tensors.
  explicit PlainTensors(pybind11::frozenset types) : types_(std::move(types)) {}

  // To be checked first in each call: whether to leave it to Python at once.
  bool is_pausing() { return paused_ > 0 && paused_-- > 0; }

  // False for anything but a tensor of such a type with memory of its own.
  bool read(PyObject* object, dlpack::Tensor& tensor) {
    if (PySet_Contains(types_.ptr(), reinterpret_cast<PyObject*>(Py_TYPE(object))) != 1) return false;
    const dlpack::ExchangeApi* const api = exchange_api(Py_TYPE(object));
    if (!api) return false;
    if (api->tensor_from_py_object_no_sync(object, &tensor) == 0) return true;
    // torch takes two milliseconds for this answer (it collects a backtrace): once such a tensor is seen, the
    // next calls do not ask.
    PyErr_Clear();
    paused_ = 1000;
    return false;
  }

 private:
  pybind11::frozenset types_;
  int paused_ = 0;
};

}  // namespace fastnn
