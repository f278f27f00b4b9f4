// The gradients of a call of clip_grad_norm, read and checked: shared by the bindings of all devices.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "bindings/optimizer_group.h"
#include "core/check.h"

namespace fastnn {

struct ClipArgs {
  std::vector<OptimizerTensor> tensors;
  int64_t elements = 0;
  int device = TensorView::kNoCudaDevice;
  pybind11::object norm;  // a new tensor of no dimensions, with the dtype and on the device of the gradients
  TensorView norm_view;

  int64_t count() const { return static_cast<int64_t>(tensors.size()); }
};

// Throws NotCovered if torch must clip; nothing has been written then.
inline ClipArgs read_clip_args(const pybind11::list& grads) {
  ClipArgs args;
  MemoryRanges ranges;
  args.tensors.reserve(grads.size());
  ranges.reserve(grads.size());
  for (const pybind11::handle grad : grads) {
    const TensorView g = read_plain(grad.ptr());
    check_not_negated(grad.ptr());
    if (!is_floating(g.dtype)) throw NotCovered(concat("no kernels for dtype ", dtype_name(g.dtype)));
    if (!is_dense(g)) throw NotCovered("a gradient does not fill one block of memory");
    if (args.tensors.empty()) args.device = g.cuda_device;
    if (g.cuda_device != args.device) throw NotCovered("devices are mixed");
    OptimizerTensor tensor{};
    tensor.param = g.data;
    tensor.grad = g.data;
    tensor.numel = g.numel();
    tensor.dtype = g.dtype;
    if (!args.tensors.empty() && g.dtype != args.tensors[0].dtype)
      throw NotCovered(concat("gradients of ", dtype_name(args.tensors[0].dtype), " and ",
                              dtype_name(g.dtype), " are mixed"));
    args.tensors.push_back(tensor);
    args.elements += tensor.numel;
    ranges.add(g, true);
  }
  if (args.elements == 0) throw NotCovered("the gradients have no elements");
  if (!ranges.disjoint()) throw NotCovered("gradients share memory");
  args.norm = grads[0].attr("new_empty")(pybind11::tuple());
  args.norm_view = read_plain(args.norm.ptr());
  return args;
}

// Calls clip(args); returns the norm, or a str that says why torch must clip if that throws NotCovered or
// returns false.
template <class Clip>
pybind11::object clip_or_why_not(const pybind11::list& grads, const Clip& clip) {
  namespace py = pybind11;
  ClipArgs args;
  if (const auto reason = why_not([&] { args = read_clip_args(grads); })) return *reason;
  if (!clip(args)) return py::str("the norm is not finite");
  return args.norm;
}

}  // namespace fastnn
