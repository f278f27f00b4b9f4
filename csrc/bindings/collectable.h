// Lets Python's garbage collector see the references that a C++ object holds: otherwise a cycle through such
// an object, e.g. of a module that keeps its own training step, would never be freed.
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/quick_method.h"

namespace fastnn {

// For py::class_<T>. T has `int traverse(visitproc, void*) const`, which calls Py_VISIT on what it holds, and
// `void clear()`, which releases it.
template <class T>
pybind11::custom_type_setup collectable() {
  return pybind11::custom_type_setup([](PyHeapTypeObject* heap_type) {
    PyTypeObject& type = heap_type->ht_type;
    type.tp_flags |= Py_TPFLAGS_HAVE_GC;
    type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) -> int {
      Py_VISIT(Py_TYPE(self));
      T* object = held<T>(self);
      return object ? object->traverse(visit, arg) : 0;
    };
    type.tp_clear = [](PyObject* self) -> int {
      if (T* object = held<T>(self)) object->clear();
      return 0;
    };
  });
}

}  // namespace fastnn
