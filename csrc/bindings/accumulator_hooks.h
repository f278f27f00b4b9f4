// Hooks on the gradient accumulator of a parameter: the node of autograd's graphs at which its gradient
// arrives, where optimizers that step during the backward hang theirs.
#pragma once

#include <pybind11/pybind11.h>

namespace fastnn {

// Whether a hook is registered on the parameter itself.
bool has_hooks(PyObject* param);

// What was found on one accumulator, and whether it may have changed.
//
// A parameter does not keep its accumulator: the node lives while a graph, or what hooked it, holds it.
// While it lives it refers to the parameter, whose count of references in C++ is then above the one that its
// Python object has, which takes some 30 ns to ask. Only where it is above, `look` (a few microseconds) finds
// the node; what it has found is true as long as the node is alive, which the dicts of its hooks tell, and
// the count is the same. To keep the node itself would be simpler, but it cannot be: a cycle through a
// parameter would not be seen by the garbage collector, and torch ties accumulators to streams.
class AccumulatorHooks {
 public:
  // `look(param)` returns the dicts of the hooks on its accumulator, none where that is not alive, or None
  // where hooks are there that it cannot see.
  bool any(PyObject* param, const pybind11::function& look);

  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(hooks_.ptr());
    return 0;
  }

 private:
  bool is_known(PyObject* param, const void* memory, long count) const;

  PyObject* param_ = nullptr;  // alive while its accumulator is
  const void* memory_ = nullptr;
  long count_ = 0;
  pybind11::object hooks_;  // a tuple of dicts
};

}  // namespace fastnn
