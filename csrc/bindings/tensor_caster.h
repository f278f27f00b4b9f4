// Lets bound functions take fastnn::TensorView arguments: reads a torch.Tensor through DLPack's C exchange
// API, in about 40 ns per tensor and without torch headers. Compiled once for each module: fastnn._cpu reads
// tensors in the memory of the CPU only, fastnn._cuda those of CUDA devices too (bindings/tensor_device.h).
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>  // std::optional arguments: None is an absent tensor

#include <optional>
#include <stdexcept>

#include "bindings/dlpack.h"
#include "core/tensor_view.h"

namespace fastnn {

// For a tensor that the kernels of this module cannot read. RuntimeError in Python.
struct Unreadable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Fills `view` from a tensor. Returns false if `object` is not a tensor; throws Unreadable, or torch's own
// error, if it is one that the kernels of this module cannot read.
bool read_tensor(PyObject* object, TensorView& view);

// DLPack's exchange API of a tensor type, or null.
const dlpack::ExchangeApi* exchange_api(PyTypeObject* type);

// False for dtypes that no kernel takes.
bool read_dtype(const dlpack::DataType& from, DType& to);

inline const TensorView* pointer(const std::optional<TensorView>& t) { return t ? &*t : nullptr; }

}  // namespace fastnn

namespace pybind11::detail {

template <>
struct type_caster<fastnn::TensorView> {
  PYBIND11_TYPE_CASTER(fastnn::TensorView, const_name("torch.Tensor"));
  bool load(handle source, bool) { return fastnn::read_tensor(source.ptr(), value); }
};

}  // namespace pybind11::detail
