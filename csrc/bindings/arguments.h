// The arguments of a captured function: what they were when it was recorded, and whether those of a call are
// the same except for the values in tensors.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "core/tensor_view.h"

namespace fastnn {

class Arguments {
 public:
  // spec: ("tensor", dtype, shape, strides); ("same", object), for that very object; ("value", object), for
  // the same type and value; ("like", anything, function), accepted by the function; ("sequence", type,
  // [specs]), for tuples and lists; or ("dict", [specs of keys], [specs]). dtype is a number of DType.
  explicit Arguments(const pybind11::tuple& spec);

  // Fills in the tensors, in order. They are alive for as long as the arguments.
  bool match(PyObject* arguments, std::vector<PyObject*>& tensors, std::vector<TensorView>& views) const;

  int traverse(visitproc visit, void* arg) const;

 private:
  enum class Kind { tensor, same, value, like, sequence, dict };
  bool match_tensor(PyObject* object, TensorView& view) const;

  Kind kind_;
  TensorView view_;          // of a tensor: dtype, shape, strides
  pybind11::object object_;  // a value, the function that accepts one, or the type of a sequence
  std::vector<Arguments> keys_;
  std::vector<Arguments> children_;
};

// Layout of a tensor, from (shape, strides).
TensorView described_view(int64_t dtype, const pybind11::handle& shape, const pybind11::handle& strides);

bool same_description(const TensorView& a, const TensorView& b);

}  // namespace fastnn
