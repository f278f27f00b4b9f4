// Methods that Python calls around every eager op. pybind11's call path takes 0.1 us, but 1.3 us after a
// backward of torch has evicted its code and tables from the caches (measured on a Zen 4); Python's own
// calling convention does not.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>
#include <new>
#include <stdexcept>

namespace fastnn {

// The C++ object of an instance of a class of pybind11; null if its constructor has not finished.
template <class T>
T* held(PyObject* self) {
  auto place = reinterpret_cast<pybind11::detail::instance*>(self)->get_value_and_holder();
  return place.holder_constructed() ? static_cast<T*>(place.value_ptr()) : nullptr;
}

namespace detail {

template <class T, Py_ssize_t count, pybind11::object (T::*method)(PyObject* const*)>
PyObject* call(PyObject* self, PyObject* const* arguments, Py_ssize_t given) {
  T* const object = held<T>(self);
  if (!object || given != count)
    return PyErr_Format(PyExc_TypeError, object ? "expected %zd arguments, got %zd" : "not initialised",
                        count, given);
  try {
    return (object->*method)(arguments).release().ptr();
  } catch (pybind11::error_already_set& error) {
    error.restore();
  } catch (const pybind11::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {  // from here on as pybind11 does
    PyErr_NoMemory();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::out_of_range& error) {
    PyErr_SetString(PyExc_IndexError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

}  // namespace detail

// Defines a method that takes `count` positional arguments. signature: as pybind11 writes it.
template <class T, Py_ssize_t count, pybind11::object (T::*method)(PyObject* const*), class... Options>
void define_quick(pybind11::class_<T, Options...>& type, const char* name, const char* signature) {
  // Python keeps the address.
  static PyMethodDef definition{nullptr, nullptr, METH_FASTCALL, nullptr};
  definition.ml_name = name;
  definition.ml_meth =
      reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&detail::call<T, count, method>));
  definition.ml_doc = signature;
  auto* const of = reinterpret_cast<PyTypeObject*>(type.ptr());
  type.attr(name) = pybind11::reinterpret_steal<pybind11::object>(PyDescr_NewMethod(of, &definition));
}

}  // namespace fastnn
