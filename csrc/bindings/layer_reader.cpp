// LayerReader: the linear layers in a list of modules that run as one op. Reading them in Python takes longer
// than torch's calls of small modules, especially after a backward, when that code is no longer in the
// caches.
#include <string>
#include <utility>
#include <vector>

#include "bindings/collectable.h"
#include "bindings/kept.h"
#include "bindings/registration.h"

namespace py = pybind11;

namespace fastnn {

namespace {

// An entry of a module's __dict__, borrowed; null if missing.
PyObject* entry(PyObject* dict, PyObject* key) {
  PyObject* const found = PyDict_GetItemWithError(dict, key);
  if (!found && PyErr_Occurred()) throw py::error_already_set();
  return found;
}

py::object dict_of(const py::object& module) {
  auto dict = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module.ptr(), nullptr));
  if (!dict) throw py::error_already_set();
  return dict;
}

class LayerReader {
 public:
  // linear: the type of the linear layers. activations: for each type of activation its name, or a dict of
  // names by the attribute `approximate`. unchanged: for each of these types a function that tells whether
  // its calls are unchanged since fastnn was imported. parameters, hooks, compiled: the attributes in which a
  // module keeps its parameters, its hooks, and the result of torch.compile.
  LayerReader(py::type linear, const py::dict& activations, const py::dict& unchanged, py::str parameters,
              py::tuple hooks, py::str compiled)
      : parameters_(std::move(parameters)), hooks_(std::move(hooks)), compiled_(std::move(compiled)) {
    kinds_.push_back({linear, py::none(), unchanged[linear]});
    for (const auto& [type, names] : activations)
      kinds_.push_back({py::reinterpret_borrow<py::type>(type), py::reinterpret_borrow<py::object>(names),
                        unchanged[type]});
  }

  // From a list of modules and a position in it: weights, biases and activations of the layers from there on
  // that run as one op, and the position after them.
  py::object read(PyObject* const* arguments) {
    if (!PyList_Check(arguments[0])) throw py::type_error("expected a list of modules");
    const auto modules = py::reinterpret_borrow<py::list>(arguments[0]);
    const size_t start = PyLong_AsSize_t(arguments[1]);
    if (PyErr_Occurred()) throw py::error_already_set();
    static Interned activation_name("activation"), weight_name("weight"), bias_name("bias");
    py::list weights, biases, activations;
    size_t i = start;
    while (i < modules.size()) {
      const py::object layer = modules[i];
      const Kind* const kind = kind_of(layer);
      if (!kind || !kind->names.is_none()) break;
      const py::object state = dict_of(layer);
      if (!is_only_forward(state.ptr())) break;
      py::object activation = layer.attr(py::handle(activation_name));
      ++i;
      if (const py::object after = i < modules.size() ? activation_of(modules[i]) : py::none();
          !after.is_none() && (activation.is_none() || is_relu_of_relu(activation, after))) {
        activation = after;
        ++i;
      }
      weights.append(parameter(layer, state.ptr(), weight_name));
      biases.append(parameter(layer, state.ptr(), bias_name));
      activations.append(activation);
    }
    return py::make_tuple(weights, biases, activations, i);
  }

  int traverse(visitproc visit, void* arg) const {
    for (const Kind& kind : kinds_) {
      Py_VISIT(kind.type.ptr());
      Py_VISIT(kind.names.ptr());
      Py_VISIT(kind.unchanged.ptr());
    }
    return 0;
  }
  void clear() { kinds_.clear(); }

 private:
  struct Kind {
    py::type type;
    py::object names;  // None for the linear layers
    py::object unchanged;
    unsigned tag = 0;  // of the type when `unchanged` last returned true; see Watch
  };

  // Null for a module of another type, or if the calls of its type were replaced.
  const Kind* kind_of(const py::object& module) {
    const auto* const type = Py_TYPE(module.ptr());
    for (Kind& kind : kinds_) {
      if (kind.type.ptr() != reinterpret_cast<const PyObject*>(type)) continue;
      if (kind.tag && kind.tag == type->tp_version_tag) return &kind;
      if (!py::cast<bool>(kind.unchanged())) return nullptr;
      kind.tag = type->tp_version_tag;
      return &kind;
    }
    return nullptr;
  }

  // Whether calling the module does nothing besides the forward of its class.
  bool is_only_forward(PyObject* state) const {
    static Interned forward("forward");
    for (const py::handle hooks : hooks_) {
      PyObject* const found = entry(state, hooks.ptr());
      if (!found || !PyDict_Check(found) || PyDict_GET_SIZE(found)) return false;
    }
    if (entry(state, forward)) return false;
    PyObject* const compiled = entry(state, compiled_.ptr());
    return !compiled || compiled == Py_None;
  }

  // The name of the activation that a module is, or None.
  py::object activation_of(const py::object& module) {
    static Interned approximate("approximate");
    const Kind* const kind = kind_of(module);
    if (!kind || kind->names.is_none()) return py::none();
    if (!is_only_forward(dict_of(module).ptr())) return py::none();
    if (!PyDict_Check(kind->names.ptr())) return kind->names;
    const py::object form = module.attr(py::handle(approximate));
    PyObject* const name = PyUnicode_Check(form.ptr()) ? entry(kind->names.ptr(), form.ptr()) : nullptr;
    return name ? py::reinterpret_borrow<py::object>(name) : py::none();
  }

  // A layer's own activation stays, except that relu(relu(z)) = relu(z).
  static bool is_relu_of_relu(const py::object& first, const py::object& second) {
    return PyUnicode_Check(first.ptr()) && PyUnicode_CompareWithASCIIString(first.ptr(), "relu") == 0 &&
           PyUnicode_CompareWithASCIIString(second.ptr(), "relu") == 0;
  }

  // `layer.name`, without the microsecond that it takes through Module.__getattr__.
  py::object parameter(const py::object& layer, PyObject* state, PyObject* name) const {
    PyObject* const own = entry(state, parameters_.ptr());
    PyObject* const found = own && PyDict_Check(own) ? entry(own, name) : nullptr;
    if (found && !entry(state, name)) return py::reinterpret_borrow<py::object>(found);
    return layer.attr(py::handle(name));  // pruned, a replica of DataParallel, replaced by a user
  }

  std::vector<Kind> kinds_;
  py::str parameters_;
  py::tuple hooks_;
  py::str compiled_;
};

}  // namespace

void register_layer_reader(py::module_& m) {
  py::class_<LayerReader> reader(m, "LayerReader", collectable<LayerReader>());
  reader.def(py::init<py::type, py::dict, py::dict, py::str, py::tuple, py::str>(), py::arg("linear"),
             py::arg("activations"), py::arg("unchanged"), py::arg("parameters"), py::arg("hooks"),
             py::arg("compiled"));
  define_quick<LayerReader, 2, &LayerReader::read>(
      reader, "read", "read(self: fastnn._cpu.LayerReader, modules: list, start: int) -> tuple");
}

}  // namespace fastnn
