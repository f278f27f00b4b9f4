#include "bindings/arguments.h"

#include <cstring>
#include <string>
#include <utility>

#include "bindings/optimizer_group.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"

namespace py = pybind11;

namespace fastnn {

TensorView described_view(int64_t dtype, const py::handle& shape, const py::handle& strides) {
  TensorView view;
  view.dtype = static_cast<DType>(dtype);
  const auto dims = py::reinterpret_borrow<py::sequence>(shape);
  const auto steps = py::reinterpret_borrow<py::sequence>(strides);
  check(dims.size() <= TensorView::kMaxDims && dims.size() == steps.size(), "program: a tensor has ",
        dims.size(), " dimensions");
  view.ndim = static_cast<int>(dims.size());
  for (int d = 0; d < view.ndim; ++d) {
    view.shape[d] = dims[static_cast<size_t>(d)].cast<int64_t>();
    view.strides[d] = view.shape[d] == 1 ? 0 : steps[static_cast<size_t>(d)].cast<int64_t>();
  }
  return view;
}

bool same_description(const TensorView& a, const TensorView& b) {
  if (a.dtype != b.dtype || a.ndim != b.ndim) return false;
  for (int d = 0; d < a.ndim; ++d)
    if (a.shape[d] != b.shape[d] || a.strides[d] != b.strides[d]) return false;
  return true;
}

Arguments::Arguments(const py::tuple& spec) {
  const auto kind = spec[0].cast<std::string>();
  if (kind == "tensor") {
    kind_ = Kind::tensor;
    view_ = described_view(spec[1].cast<int64_t>(), spec[2], spec[3]);
    return;
  }
  static const std::pair<const char*, Kind> kinds[] = {{"same", Kind::same},
                                                       {"value", Kind::value},
                                                       {"like", Kind::like},
                                                       {"sequence", Kind::sequence},
                                                       {"dict", Kind::dict}};
  for (const auto& [text, named] : kinds)
    if (kind == text) kind_ = named;
  if (kind_ == Kind::dict)
    for (const py::handle key : spec[1]) keys_.emplace_back(py::reinterpret_borrow<py::tuple>(key));
  else
    object_ = spec[kind_ == Kind::like ? 2 : 1];
  if (kind_ == Kind::sequence || kind_ == Kind::dict)
    for (const py::handle child : spec[2]) children_.emplace_back(py::reinterpret_borrow<py::tuple>(child));
}

namespace {

// What cannot be compared is another value, and runs as written; an interrupt comes out.
void clear_failure() {
  if (!PyErr_ExceptionMatches(PyExc_Exception)) throw py::error_already_set();
  PyErr_Clear();
}

}  // namespace

// Subclasses of tensors and tensors tracked by autograd do not match a recording.
bool Arguments::match_tensor(PyObject* object, TensorView& view) const {
  static TorchAttribute tensor("torch", "Tensor");
  if (Py_TYPE(object) != tensor.as_type()) return false;
  try {
    view = read_plain(object);
    if (!same_description(view, view_) || requires_grad(object)) return false;
    check_not_negated(object);
  } catch (const NotCovered&) {
    return false;
  }
  return true;
}

bool Arguments::match(PyObject* arguments, std::vector<PyObject*>& tensors,
                      std::vector<TensorView>& views) const {
  switch (kind_) {
    case Kind::tensor: {
      TensorView view;
      if (!match_tensor(arguments, view)) return false;
      tensors.push_back(arguments);
      views.push_back(view);
      return true;
    }
    case Kind::same:
      return arguments == object_.ptr();
    case Kind::like: {
      const auto said = py::reinterpret_steal<py::object>(PyObject_CallOneArg(object_.ptr(), arguments));
      if (!said) clear_failure();
      return said.ptr() == Py_True;
    }
    case Kind::value: {
      if (arguments == object_.ptr()) return true;
      if (Py_TYPE(arguments) != Py_TYPE(object_.ptr())) return false;
      if (PyFloat_CheckExact(arguments)) {  // -0.0 differs from 0.0, and a NaN equals itself
        const double a = PyFloat_AS_DOUBLE(arguments), b = PyFloat_AS_DOUBLE(object_.ptr());
        return std::memcmp(&a, &b, sizeof(a)) == 0;
      }
      const int equal = PyObject_RichCompareBool(arguments, object_.ptr(), Py_EQ);
      if (equal < 0) clear_failure();
      return equal == 1;
    }
    case Kind::sequence: {
      if (reinterpret_cast<PyObject*>(Py_TYPE(arguments)) != object_.ptr()) return false;
      const Py_ssize_t size = PySequence_Fast_GET_SIZE(arguments);
      if (static_cast<size_t>(size) != children_.size()) return false;
      for (Py_ssize_t i = 0; i < size; ++i)
        if (!children_[static_cast<size_t>(i)].match(PySequence_Fast_GET_ITEM(arguments, i), tensors, views))
          return false;
      return true;
    }
    case Kind::dict: {
      if (!PyDict_CheckExact(arguments) || static_cast<size_t>(PyDict_GET_SIZE(arguments)) != keys_.size())
        return false;
      Py_ssize_t position = 0;
      PyObject *key, *value;
      for (size_t i = 0; PyDict_Next(arguments, &position, &key, &value); ++i) {  // in the recorded order
        if (!keys_[i].match(key, tensors, views) || !children_[i].match(value, tensors, views)) return false;
      }
      return true;
    }
  }
  return false;
}

int Arguments::traverse(visitproc visit, void* arg) const {
  Py_VISIT(object_.ptr());
  for (const auto* parts : {&keys_, &children_})
    for (const Arguments& part : *parts)
      if (const int stop = part.traverse(visit, arg)) return stop;
  return 0;
}

}  // namespace fastnn
