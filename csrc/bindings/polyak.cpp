// polyak: the soft update of target tensors towards their sources.
#include <algorithm>
#include <vector>

#include "bindings/memory_ranges.h"
#include "bindings/optimizer_group.h"
#include "bindings/registration.h"
#include "core/check.h"
#include "dispatch/cpu_dispatch.h"

namespace py = pybind11;

namespace fastnn {

namespace {

TensorView read_floating(PyObject* tensor) {
  const TensorView view = read_plain(tensor);
  check_not_negated(tensor);
  if (!is_floating(view.dtype)) throw NotCovered(concat("no kernels for dtype ", dtype_name(view.dtype)));
  return view;
}

bool same_elements(const TensorView& a, const TensorView& b) {
  return a.ndim == b.ndim && a.dtype == b.dtype && std::equal(a.shape, a.shape + a.ndim, b.shape) &&
         std::equal(a.strides, a.strides + a.ndim, b.strides);
}

// Throws if torch must update; the lists are equally long.
std::vector<OptimizerTensor> read_pairs(const py::list& targets, const py::list& sources) {
  std::vector<OptimizerTensor> tensors(targets.size());
  MemoryRanges ranges;
  ranges.reserve(2 * tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorView target = read_floating(targets[i].ptr()), source = read_floating(sources[i].ptr());
    if (!is_dense(target)) throw NotCovered("a target does not fill one block of memory");
    if (!same_elements(target, source))
      throw NotCovered("target and source differ in dtype, shape or strides");
    ranges.add(target, true);
    if (source.data != target.data) ranges.add(source, false);
    tensors[i].param = target.data;
    tensors[i].grad = source.data;
    tensors[i].numel = target.numel();
    tensors[i].dtype = target.dtype;
  }
  if (!ranges.disjoint()) throw NotCovered("targets share memory with each other or with another's source");
  return tensors;
}

// None; or, with nothing written, a str that says why torch must update.
py::object polyak(const py::list& targets, const py::list& sources, double tau) {
  std::vector<OptimizerTensor> tensors;
  if (const auto reason = why_not([&] { tensors = read_pairs(targets, sources); })) return *reason;
  int64_t elements = 0;
  for (const OptimizerTensor& tensor : tensors) elements += tensor.numel;
  {
    const KernelCall call(elements);
    cpu_kernels().polyak.update(tensors.data(), static_cast<int64_t>(tensors.size()), tau);
  }
  return py::none();
}

}  // namespace

void register_polyak(py::module_& m) { m.def("polyak", &polyak); }

}  // namespace fastnn
