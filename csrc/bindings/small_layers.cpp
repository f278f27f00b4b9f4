// SmallLayers: linear layers in torch's ops, for those that are too little work for a native call to pay off.
// For the smallest of them, checks in Python take as long as they may save.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>

#include "bindings/collectable.h"
#include "bindings/kept.h"
#include "bindings/plain_tensors.h"
#include "bindings/registration.h"

namespace py = pybind11;

namespace fastnn {

namespace {

int64_t elements(const dlpack::Tensor& tensor) {
  int64_t count = 1;
  for (int32_t d = 0; d < tensor.ndim; ++d) count *= tensor.shape[d];
  return count;
}

bool is_true(py::object answer) {
  if (!answer) throw py::error_already_set();
  return answer.ptr() == Py_True;
}

bool requires_gradient(PyObject* tensor) {
  static Interned requires_grad("requires_grad");
  return is_true(py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, requires_grad)));
}

// Whether what is computed from these two requires a gradient.
bool wants_gradient(PyObject* weight, PyObject* input) {
  static TorchAttribute is_grad_enabled("torch", "is_grad_enabled");
  return is_true(py::reinterpret_steal<py::object>(PyObject_CallNoArgs(is_grad_enabled))) &&
         (requires_gradient(weight) || requires_gradient(input));
}

class SmallLayers {
 public:
  // types: those of plain tensors. jit_state: returns None unless torch.jit traces. functions: the dict in
  // which F.linear is looked up at each call. activate: applies the activation of a name to a tensor.
  // layers, chains, limits: see fastnn.ops.sizes; the first two without and with gradients, by activation.
  SmallLayers(py::frozenset types, py::object jit_state, py::dict functions, py::object activate,
              py::dict layers, py::dict chains, const py::dict& limits)
      : plain_(std::move(types)),
        jit_state_(std::move(jit_state)),
        functions_(std::move(functions)),
        activate_(std::move(activate)),
        layers_(std::move(layers)),
        chains_(std::move(chains)) {
    const auto limit = [&limits](const char* name) { return limits[name].cast<int64_t>(); };
    deep_ = limit("deep");
    deep_work_ = limit("deep_work");
    half_work_ = limit("half_work");
    few_rows_ = limit("few_rows");
    few_rows_work_ = limit("few_rows_work");
  }

  // For input, weight, bias and activation: the output, or None if a native call is worth trying.
  py::object layer(PyObject* const* arguments) {
    PyObject *const input = arguments[0], *const weight = arguments[1], *const activation = arguments[3];
    if (!asked([&] { return is_small_layer(input, weight, activation); })) return py::none();
    return run(py::reinterpret_borrow<py::object>(input), weight, arguments[2], activation);
  }

  // The same for input, and lists of weights, biases and activations.
  py::object chain(PyObject* const* arguments) {
    for (int i = 1; i < 4; ++i)
      if (!PyList_CheckExact(arguments[i]) ||
          PyList_GET_SIZE(arguments[i]) != PyList_GET_SIZE(arguments[1]) || !PyList_GET_SIZE(arguments[i]))
        return py::none();
    if (!asked([&] { return is_small_chain(arguments[0], arguments[1], arguments[3]); })) return py::none();
    // A copy, since user code may be called.
    const py::tuple weights(py::reinterpret_borrow<py::list>(arguments[1])),
        biases(py::reinterpret_borrow<py::list>(arguments[2])),
        activations(py::reinterpret_borrow<py::list>(arguments[3]));
    auto value = py::reinterpret_borrow<py::object>(arguments[0]);
    for (size_t i = 0; i < weights.size(); ++i)
      value = run(value, PyTuple_GET_ITEM(weights.ptr(), i), PyTuple_GET_ITEM(biases.ptr(), i),
                  PyTuple_GET_ITEM(activations.ptr(), i));
    return value;
  }

  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(jit_state_.ptr());
    Py_VISIT(functions_.ptr());
    Py_VISIT(activate_.ptr());
    Py_VISIT(layers_.ptr());
    Py_VISIT(chains_.ptr());
    return 0;
  }
  void clear() { activate_ = py::none(); }

 private:
  template <class Question>
  bool asked(const Question& question) {
    if (plain_.is_pausing()) return false;
    const auto state = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(jit_state_.ptr()));
    if (!state) throw py::error_already_set();
    return state.is_none() && question();
  }

  struct Read {
    dlpack::Tensor tensor;
    int64_t count;
    bool half;
  };

  // Only plain tensors on the CPU can be small.
  std::optional<Read> read(PyObject* input) {
    Read result;
    if (!plain_.read(input, result.tensor) || result.tensor.device.type != dlpack::kCpu) return std::nullopt;
    const dlpack::DataType type = result.tensor.dtype;
    result.count = elements(result.tensor);
    result.half = type.bits == 16 && (type.code == dlpack::kFloat || type.code == dlpack::kBfloat);
    return result;
  }

  // Without and with gradients; nullopt for anything but an activation, which may not even be hashable.
  static std::optional<std::pair<int64_t, int64_t>> limits_of(const py::dict& of, PyObject* activation) {
    if (activation != Py_None && !PyUnicode_CheckExact(activation)) return std::nullopt;
    PyObject* const found = PyDict_GetItemWithError(of.ptr(), activation);
    if (!found && PyErr_Occurred()) throw py::error_already_set();
    if (!found) return std::nullopt;
    return py::cast<std::pair<int64_t, int64_t>>(found);
  }

  bool is_small_layer(PyObject* input, PyObject* weight, PyObject* activation) {
    const auto x = read(input), w = read(weight);
    if (!x || !w || w->tensor.ndim != 2) return false;
    const int64_t outputs = w->tensor.shape[0], inputs = w->tensor.shape[1], work = x->count * outputs;
    const auto limits = limits_of(layers_, activation);
    if (!limits) return false;
    if (x->half) return work <= half_work_;
    auto [without, with] = *limits;
    if (inputs >= deep_) without = deep_work_;
    if (work <= std::min(without, with)) return true;
    // The gradients of one row are outer products and a pass over W: memory-bound, where torch is faster.
    const bool one_row = x->count == inputs;
    if (work > std::max(without, with) && !one_row) return false;
    return wants_gradient(weight, input) ? work <= with || one_row : work <= without;
  }

  bool is_small_chain(PyObject* input, PyObject* weights, PyObject* activations) {
    const auto x = read(input);
    if (!x || x->tensor.ndim == 0 || !x->count) return false;
    const int64_t rows = x->count / x->tensor.shape[x->tensor.ndim - 1];
    int64_t work = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(weights); ++i) {
      const auto w = read(PyList_GET_ITEM(weights, i));
      if (!w) return false;
      work = std::max(work, rows * w->count);
    }
    const bool few = rows < few_rows_ && work <= few_rows_work_;
    int64_t without = -1, with = INT64_MAX;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(activations); ++i) {
      const auto limits = limits_of(chains_, PyList_GET_ITEM(activations, i));
      if (!limits) return false;
      without = std::max(without, limits->first);
      with = std::min(with, limits->second);
    }
    if (x->half) return few;
    if (wants_gradient(PyList_GET_ITEM(weights, 0), input)) return rows == 1 || work <= with;
    return few || work <= without;
  }

  py::object run(const py::object& input, PyObject* weight, PyObject* bias, PyObject* activation) const {
    static Interned linear("linear");
    PyObject* const function = PyDict_GetItemWithError(functions_.ptr(), linear);
    if (!function) throw py::attribute_error("torch.nn.functional has no linear");
    PyObject* const arguments[] = {input.ptr(), weight, bias};
    auto output = py::reinterpret_steal<py::object>(PyObject_Vectorcall(function, arguments, 3, nullptr));
    if (output && activation != Py_None) {
      PyObject* const then[] = {output.ptr(), activation};
      output = py::reinterpret_steal<py::object>(PyObject_Vectorcall(activate_.ptr(), then, 2, nullptr));
    }
    if (!output) throw py::error_already_set();
    return output;
  }

  PlainTensors plain_;
  py::object jit_state_;
  py::dict functions_;
  py::object activate_;
  py::dict layers_, chains_;
  int64_t deep_, deep_work_, half_work_, few_rows_, few_rows_work_;
};

}  // namespace

void register_small_layers(py::module_& m) {
  py::class_<SmallLayers> small(m, "SmallLayers", collectable<SmallLayers>());
  small.def(py::init<py::frozenset, py::object, py::dict, py::object, py::dict, py::dict, py::dict>(),
            py::arg("types"), py::arg("jit_state"), py::arg("functions"), py::arg("activate"),
            py::arg("layers"), py::arg("chains"), py::arg("limits"));
  define_quick<SmallLayers, 4, &SmallLayers::layer>(
      small, "layer",
      "layer(self: fastnn._cpu.SmallLayers, input: object, weight: object, bias: object, "
      "activation: object) -> object");
  define_quick<SmallLayers, 4, &SmallLayers::chain>(
      small, "chain",
      "chain(self: fastnn._cpu.SmallLayers, input: object, weights: object, biases: object, "
      "activations: object) -> object");
}

}  // namespace fastnn
