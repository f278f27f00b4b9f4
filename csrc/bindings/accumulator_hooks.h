// Hooks on the gradient accumulator of a parameter: the node of the autograd graph at which its gradient
// arrives, where optimizers that step during the backward register theirs.
#pragma once

#include <pybind11/pybind11.h>

namespace fastnn {

// Whether a hook is registered on the parameter itself.
bool has_hooks(PyObject* param);

// What was found on one accumulator, and whether it may have changed.
//
// A parameter does not own its accumulator: the node lives while a graph, or whatever registered a hook,
// refers to it. While alive it refers to the parameter, whose C++ reference count then exceeds the one
// reference of its Python object; reading the count takes some 30 ns. Only if it is higher, `look` (a few
// microseconds) finds the node; what it has found stays valid while the node is alive, which the dicts of its
// hooks show, and the count is the same. Keeping the node itself would be simpler but is impossible: the
// garbage collector would not see a cycle through a parameter, and torch ties accumulators to streams.
class AccumulatorHooks {
 public:
  // `look(param)` returns the dicts of the hooks on its accumulator, none if that is not alive, or None if
  // there are hooks that it cannot see.
  bool any(PyObject* param, const pybind11::function& look);

  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(hooks_.ptr());
    return 0;
  }

 private:
  bool is_known(PyObject* param, const void* memory, long count) const;

  PyObject* param_ = nullptr;  // kept alive by its accumulator
  const void* memory_ = nullptr;
  long count_ = 0;
  pybind11::object hooks_;  // a tuple of dicts
};

}  // namespace fastnn
