#include "bindings/program_step.h"

#include "bindings/adagrad_step.h"
#include "bindings/adam_step.h"
#include "bindings/rmsprop_step.h"
#include "bindings/sgd_step.h"
#include "bindings/tensor_caster.h"

namespace py = pybind11;

namespace fastnn {

namespace {

template <class GroupStep>
bool take(const py::object& optimizer, const std::vector<std::pair<PyObject*, const void*>>& gradients,
          const py::function& match_layout) {
  static Interned groups_key("param_groups");
  static Interned state_key("state");
  static TorchAttribute increment_version("torch.autograd.graph", "increment_version");
  const auto groups = py::reinterpret_steal<py::list>(PyObject_GetAttr(optimizer.ptr(), groups_key));
  const auto state = py::reinterpret_steal<py::dict>(PyObject_GetAttr(optimizer.ptr(), state_key));
  if (!groups || !state) throw py::error_already_set();
  size_t next = 0;
  const auto gradient_of = [&](PyObject* param) -> const void* {
    if (next == gradients.size() || gradients[next].first != param) return nullptr;
    return gradients[next++].second;
  };
  std::vector<GroupStep> steps;
  steps.reserve(groups.size());
  const auto reason = why_not([&] {
    for (const py::handle group : groups) {
      steps.emplace_back(py::reinterpret_borrow<py::dict>(group), state, match_layout);
      steps.back().prepare_with(gradient_of);
    }
    refuse_if(next != gradients.size(), "the optimizer has other parameters");
    for (size_t i = 1; i < steps.size(); ++i) steps.front().also_touches(steps[i]);
    steps.front().check_disjoint();
  });
  if (reason) return false;
  for (GroupStep& group : steps) {
    owned(PyObject_CallOneArg(increment_version, group.written().ptr()));
    group.run();
  }
  return true;
}

}  // namespace

bool has_parameters(const py::object& optimizer, const py::list& expected) {
  static Interned groups_key("param_groups");
  static Interned params_key("params");
  const py::object groups = owned(PyObject_GetAttr(optimizer.ptr(), groups_key));
  if (!PyList_Check(groups.ptr())) return false;
  Py_ssize_t seen = 0;
  for (Py_ssize_t g = 0; g < PyList_GET_SIZE(groups.ptr()); ++g) {
    PyObject* const group = PyList_GET_ITEM(groups.ptr(), g);
    PyObject* const params = PyDict_Check(group) ? PyDict_GetItemWithError(group, params_key) : nullptr;
    if (!params || !PyList_Check(params)) return PyErr_Clear(), false;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i, ++seen)
      if (seen == PyList_GET_SIZE(expected.ptr()) ||
          PyList_GET_ITEM(params, i) != PyList_GET_ITEM(expected.ptr(), seen))
        return false;
  }
  return seen == PyList_GET_SIZE(expected.ptr());
}

bool take_step(const std::string& rule, const py::object& optimizer,
               const std::vector<std::pair<PyObject*, const void*>>& gradients,
               const py::function& match_layout) {
  if (rule == "adam") return take<AdamStep>(optimizer, gradients, match_layout);
  if (rule == "sgd") return take<SgdStep>(optimizer, gradients, match_layout);
  if (rule == "rmsprop") return take<RmspropStep>(optimizer, gradients, match_layout);
  if (rule == "adagrad") return take<AdagradStep>(optimizer, gradients, match_layout);
  return false;
}

}  // namespace fastnn
