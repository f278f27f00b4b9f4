// Watch: whether Python objects are unchanged, checked before every call of something prepared for them.
// Checking from Python would take longer than the step of a small network.
#include <cstring>
#include <utility>
#include <vector>

#include "bindings/accumulator_hooks.h"
#include "bindings/collectable.h"
#include "bindings/optimizer_group.h"
#include "bindings/registration.h"

namespace py = pybind11;

namespace fastnn {

namespace {

class Watch {
 public:
  // container[key] is value, or equals it if it is a number or text; the same everywhere but in contents.
  void item(py::dict container, py::object key, py::object value) {
    items_.push_back({std::move(container), std::move(key), std::move(value)});
  }
  // There is no such key.
  void absent(py::dict container, py::object key) {
    items_.push_back({std::move(container), std::move(key), py::object()});
  }
  // object.name is value.
  void attribute(py::object object, py::object name, py::object value) {
    attributes_.push_back({std::move(object), std::move(name), std::move(value)});
  }
  // The keys are these, in this order, and so are their values.
  void content(py::dict container) {
    Content content{container, {}};
    for (const auto& [key, value] : container)
      content.entries.emplace_back(py::reinterpret_borrow<py::object>(key),
                                   py::reinterpret_borrow<py::object>(value));
    contents_.push_back(std::move(content));
  }
  // The list holds the same objects.
  void elements(py::list list) { lists_.emplace_back(list, py::tuple(list)); }
  // list[index] is value.
  void element(py::list list, Py_ssize_t index, py::object value) {
    elements_.push_back({std::move(list), index, std::move(value)});
  }
  // The list or dict has this many entries.
  void size(py::object container, Py_ssize_t size) { sizes_.emplace_back(std::move(container), size); }
  // The function has the same code and defaults, which reloading a file replaces in place.
  void function(py::function function) { functions_.emplace_back(std::move(function)); }
  // The unbound attribute of the type, or of the first of its bases that has it, is value.
  void class_item(const py::type& type, py::object name, py::object value) {
    for (Class& watched : classes_)
      if (watched.type.is(type)) {
        watched.attributes.emplace_back(std::move(name), std::move(value));
        watched.tag = 0;
        return;
      }
    classes_.push_back({type, {{std::move(name), std::move(value)}}, 0});
  }
  // type has no such attribute, nor has a base.
  void class_absent(const py::type& type, py::object name) {
    class_item(type, std::move(name), py::object());
  }
  void type(py::object object) { types_.emplace_back(object, py::type::of(object)); }
  // Nothing happens when the gradient of the parameter arrives; see AccumulatorHooks for `look`.
  void unhooked(py::object param, py::function look) {
    leaves_.push_back({std::move(param), std::move(look), {}});
  }

  py::object is_unchanged(PyObject* const*) { return py::bool_(unchanged()); }

  bool unchanged() {
    for (const Item& item : items_) {
      PyObject* const found = PyDict_GetItemWithError(item.holder.ptr(), item.key.ptr());
      if (!found && PyErr_Occurred()) throw py::error_already_set();
      if (!is_value(found, item.value.ptr())) return false;
    }
    for (const auto& [object, type] : types_)
      if (reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) != type.ptr()) return false;
    for (const Content& content : contents_)
      if (!same(content)) return false;
    for (const auto& [list, elements] : lists_)
      if (!same(list, elements)) return false;
    for (const auto& [container, size] : sizes_)
      if (length(container.ptr()) != size) return false;
    for (const auto& [list, index, value] : elements_)
      if (index >= PyList_GET_SIZE(list.ptr()) || !is_value(PyList_GET_ITEM(list.ptr(), index), value.ptr()))
        return false;
    for (const Function& watched : functions_)
      if (!watched.is_same()) return false;
    for (const Class& watched : classes_)
      if (!same(watched)) return false;
    for (const Item& item : attributes_)
      if (!is_attribute(item.holder, item.key, item.value)) return false;
    for (Leaf& leaf : leaves_)
      if (has_hooks(leaf.param.ptr()) || leaf.accumulator.any(leaf.param.ptr(), leaf.look)) return false;
    return true;
  }

  int traverse(visitproc visit, void* arg) const {
    for (const auto* items : {&items_, &attributes_})
      for (const Item& item : *items) {
        Py_VISIT(item.holder.ptr());
        Py_VISIT(item.key.ptr());
        Py_VISIT(item.value.ptr());
      }
    for (const Content& content : contents_) {
      Py_VISIT(content.container.ptr());
      for (const auto& [key, value] : content.entries) {
        Py_VISIT(key.ptr());
        Py_VISIT(value.ptr());
      }
    }
    for (const auto& [list, elements] : lists_) {
      Py_VISIT(list.ptr());
      Py_VISIT(elements.ptr());
    }
    for (const Element& element : elements_) {
      Py_VISIT(element.list.ptr());
      Py_VISIT(element.value.ptr());
    }
    for (const auto& [container, size] : sizes_) Py_VISIT(container.ptr());
    for (const Class& watched : classes_) {
      Py_VISIT(watched.type.ptr());
      for (const auto& [name, value] : watched.attributes) {
        Py_VISIT(name.ptr());
        Py_VISIT(value.ptr());
      }
    }
    for (const Function& watched : functions_) {
      Py_VISIT(watched.function.ptr());
      Py_VISIT(watched.code.ptr());
      Py_VISIT(watched.defaults.ptr());
      Py_VISIT(watched.keyword_defaults.ptr());
    }
    for (const auto& [object, type] : types_) {
      Py_VISIT(object.ptr());
      Py_VISIT(type.ptr());
    }
    for (const Leaf& leaf : leaves_) {
      Py_VISIT(leaf.param.ptr());
      Py_VISIT(leaf.look.ptr());
      if (const int stop = leaf.accumulator.traverse(visit, arg)) return stop;
    }
    return 0;
  }
  void clear() { *this = Watch(); }

 private:
  struct Item {
    py::object holder, key, value;
  };
  struct Element {
    py::list list;
    Py_ssize_t index;
    py::object value;
  };
  struct Content {
    py::dict container;
    std::vector<std::pair<py::object, py::object>> entries;
  };
  struct Class {
    py::type type;
    std::vector<std::pair<py::object, py::object>> attributes;
    mutable unsigned tag;  // the class's version tag in Python's method cache when they were last found
  };

  struct Function {
    explicit Function(py::function watched)
        : function(std::move(watched)),
          code(py::reinterpret_borrow<py::object>(PyFunction_GET_CODE(function.ptr()))),
          defaults(py::reinterpret_borrow<py::object>(PyFunction_GET_DEFAULTS(function.ptr()))),
          keyword_defaults(py::reinterpret_borrow<py::object>(PyFunction_GET_KW_DEFAULTS(function.ptr()))) {}
    bool is_same() const {
      PyObject* const it = function.ptr();
      return PyFunction_GET_CODE(it) == code.ptr() && PyFunction_GET_DEFAULTS(it) == defaults.ptr() &&
             PyFunction_GET_KW_DEFAULTS(it) == keyword_defaults.ptr();
    }
    py::function function;
    py::object code, defaults, keyword_defaults;  // defaults may be null
  };

  struct Leaf {
    py::object param;
    py::function look;
    AccumulatorHooks accumulator;
  };

  // The same object, or an equal number, text, bytes or tuple of those, which are recreated whenever they are
  // computed.
  static bool is_value(PyObject* found, PyObject* expected) {
    if (found == expected) return true;
    if (!found || !expected || Py_TYPE(found) != Py_TYPE(expected)) return false;
    if (PyFloat_CheckExact(found)) {  // signed zeros differ, and NaN equals itself
      const double a = PyFloat_AS_DOUBLE(found), b = PyFloat_AS_DOUBLE(expected);
      return std::memcmp(&a, &b, sizeof a) == 0;
    }
    if (PyTuple_CheckExact(found)) {
      const Py_ssize_t size = PyTuple_GET_SIZE(found);
      if (size != PyTuple_GET_SIZE(expected)) return false;
      for (Py_ssize_t i = 0; i < size; ++i)
        if (!is_value(PyTuple_GET_ITEM(found, i), PyTuple_GET_ITEM(expected, i))) return false;
      return true;
    }
    if (!PyLong_CheckExact(found) && !PyUnicode_CheckExact(found) && !PyBytes_CheckExact(found)) return false;
    const int equal = PyObject_RichCompareBool(found, expected, Py_EQ);
    if (equal < 0) throw py::error_already_set();
    return equal == 1;
  }

  static bool same(const Content& content) {
    PyObject* const dict = content.container.ptr();
    if (static_cast<size_t>(PyDict_GET_SIZE(dict)) != content.entries.size()) return false;
    Py_ssize_t position = 0;
    PyObject *key, *value;
    for (const auto& entry : content.entries)
      if (!PyDict_Next(dict, &position, &key, &value) || key != entry.first.ptr() ||
          value != entry.second.ptr())
        return false;
    return true;
  }

  static bool same(const py::list& list, const py::tuple& elements) {
    if (list.size() != elements.size()) return false;
    for (size_t i = 0; i < elements.size(); ++i)
      if (PyList_GET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i)) !=
          PyTuple_GET_ITEM(elements.ptr(), static_cast<Py_ssize_t>(i)))
        return false;
    return true;
  }

  static Py_ssize_t length(PyObject* container) {
    return PyDict_Check(container) ? PyDict_GET_SIZE(container) : PyList_GET_SIZE(container);
  }

  static bool is_attribute(const py::object& object, const py::object& name, const py::object& value) {
    const auto found = py::reinterpret_steal<py::object>(PyObject_GetAttr(object.ptr(), name.ptr()));
    if (!found) PyErr_Clear();  // it does not exist
    return is_value(found.ptr(), value.ptr());
  }

  // Python gives a class a new, unique tag after any change of it or of its bases; 0 means none.
  static bool same(const Class& watched) {
    const auto* const type = reinterpret_cast<const PyTypeObject*>(watched.type.ptr());
    if (watched.tag && watched.tag == type->tp_version_tag) return true;
    for (const auto& [name, value] : watched.attributes)
      if (!is_value(_PyType_Lookup(reinterpret_cast<PyTypeObject*>(watched.type.ptr()), name.ptr()),
                    value.ptr()))
        return false;
    watched.tag = type->tp_version_tag;
    return true;
  }

  std::vector<Item> items_, attributes_;
  std::vector<Function> functions_;
  std::vector<Class> classes_;
  std::vector<Content> contents_;
  std::vector<std::pair<py::list, py::tuple>> lists_;
  std::vector<Element> elements_;
  std::vector<std::pair<py::object, Py_ssize_t>> sizes_;
  std::vector<std::pair<py::object, py::object>> types_;
  std::vector<Leaf> leaves_;
};

}  // namespace

void register_watch(py::module_& m) {
  py::class_<Watch> watch(m, "Watch", collectable<Watch>());
  watch.def(py::init<>())
      .def("item", &Watch::item)
      .def("absent", &Watch::absent)
      .def("attribute", &Watch::attribute)
      .def("content", &Watch::content)
      .def("elements", &Watch::elements)
      .def("element", &Watch::element)
      .def("size", &Watch::size)
      .def("function", &Watch::function)
      .def("class_item", &Watch::class_item)
      .def("class_absent", &Watch::class_absent)
      .def("type", &Watch::type)
      .def("unhooked", &Watch::unhooked);
  define_quick<Watch, 0, &Watch::is_unchanged>(watch, "unchanged",
                                               "unchanged(self: fastnn._cpu.Watch) -> bool");
}

}  // namespace fastnn
