// Python objects that are looked up once and kept for the life of the process.
//
//   static Interned key("lr");
//   static TorchAttribute float32("torch", "float32");
//
// The compiler initialises these variables statically. If the initialiser of a static variable ran Python
// instead, it would do so under a C++ lock, and could hand the GIL to a thread that then waits for that lock:
// a deadlock. Here the GIL, which every caller holds, guards the pointer; threads that are first at the same
// time find the same object, each with a reference that is never released.
#pragma once

#include <pybind11/pybind11.h>

namespace fastnn {

class Interned {
 public:
  constexpr explicit Interned(const char* text) : text_(text) {}
  operator PyObject*() { return object_ ? object_ : find(); }

 private:
  PyObject* find() {
    object_ = PyUnicode_InternFromString(text_);
    if (!object_) throw pybind11::error_already_set();
    return object_;
  }

  const char* text_;
  PyObject* object_ = nullptr;
};

class TorchAttribute {
 public:
  constexpr TorchAttribute(const char* module, const char* name) : module_(module), name_(name) {}
  operator PyObject*() { return object_ ? object_ : find(); }
  PyTypeObject* as_type() { return reinterpret_cast<PyTypeObject*>(static_cast<PyObject*>(*this)); }

 private:
  PyObject* find() {
    return object_ = pybind11::object(pybind11::module_::import(module_).attr(name_)).release().ptr();
  }

  const char *module_, *name_;
  PyObject* object_ = nullptr;
};

}  // namespace fastnn
