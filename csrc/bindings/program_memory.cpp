#include "bindings/program_memory.h"

#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "bindings/arguments.h"
#include "bindings/optimizer_group.h"
#include "bindings/program_batches.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"

namespace py = pybind11;

namespace fastnn {

namespace {

// Bytes from the first element of a tensor to the end of its last.
int64_t extent(const TensorView& view) {
  int64_t last = 0;
  for (int d = 0; d < view.ndim; ++d) last += (view.shape[d] - 1) * view.strides[d];
  return view.numel() ? (last + 1) * dtype_size(view.dtype) : 0;
}

}  // namespace

void ProgramMemory::add(const py::tuple& from) {
  static const std::pair<const char*, Kind> kinds[] = {{"arena", Kind::arena},
                                                       {"input", Kind::input},
                                                       {"external", Kind::external},
                                                       {"gradient", Kind::gradient},
                                                       {"output", Kind::output}};
  Buffer buffer;
  const auto name = from[0].cast<std::string>();
  for (const auto& [text, kind] : kinds)
    if (name == text) buffer.kind = kind;
  buffer.index = from[1].cast<size_t>();
  buffer.tensor = from[2];
  const auto description = from[3].cast<py::tuple>();
  buffer.view = described_view(description[0].cast<int64_t>(), description[1], description[2]);
  buffer.requires_grad = from[4].cast<bool>();
  buffer.first = from[5].cast<int64_t>();
  buffer.bytes = from[6].cast<int64_t>();
  buffer.written = from[7].cast<bool>();
  if (buffer.kind == Kind::arena || buffer.kind == Kind::external)
    buffer.base = memory_of(read_plain(buffer.tensor.ptr()), buffer);
  buffers_.push_back(std::move(buffer));
}

char* ProgramMemory::memory_of(const TensorView& view, const Buffer& buffer) {
  return static_cast<char*>(view.data) - buffer.first;
}

Operand ProgramMemory::read_operand(const py::tuple& from, const TensorView& view) {
  const Operand operand{from[0].cast<size_t>(), from[1].cast<int64_t>()};
  check(operand.buffer < buffers_.size(), kProgram, ": no buffer ", operand.buffer);
  Buffer& buffer = buffers_[operand.buffer];
  if (view.numel() == 0) return operand;
  const int64_t end = operand.offset + extent(view);
  check(operand.offset >= 0 && end <= buffer.bytes, kProgram, ": an operand ends at byte ", end, " of ",
        buffer.bytes);
  if (buffer.kind != Kind::arena && buffer.kind != Kind::output &&
      (operand.offset < buffer.first || end > buffer.first + extent(buffer.view)))
    buffer.only_here = true;
  return operand;
}

bool ProgramMemory::find(const std::vector<TensorView>& inputs, py::list& written_gradients) {
  for (Buffer& buffer : buffers_)
    if (!find(buffer, inputs, written_gradients)) return false;
  return !inputs_overlap(inputs);
}

bool ProgramMemory::find(Buffer& buffer, const std::vector<TensorView>& inputs, py::list& written_gradients) {
  static Interned grad("grad");
  if (buffer.kind == Kind::arena || buffer.kind == Kind::output) return true;
  TensorView view;
  if (buffer.kind == Kind::input) {
    view = inputs[buffer.index];
  } else {
    try {
      if (buffer.kind == Kind::gradient) {
        const py::object gradient = owned(PyObject_GetAttr(buffer.tensor.ptr(), grad));
        if (gradient.is_none() || requires_grad(gradient.ptr())) return false;
        view = read_plain(gradient.ptr());
        check_not_negated(gradient.ptr());
        if (buffer.written) written_gradients.append(gradient);
      } else {
        view = read_plain(buffer.tensor.ptr());
        if (requires_grad(buffer.tensor.ptr()) != buffer.requires_grad) return false;
      }
    } catch (const NotCovered&) {
      return false;
    }
    if (!same_description(view, buffer.view)) return false;
  }
  char* const base = memory_of(view, buffer);
  if (buffer.only_here && base != buffer.base) return false;
  buffer.base = base;
  return true;
}

bool ProgramMemory::inputs_overlap(const std::vector<TensorView>& inputs) const {
  for (const Buffer& input : buffers_) {
    if (input.kind != Kind::input) continue;
    const char* const begin = input.base + input.first;
    const char* const end = begin + extent(inputs[input.index]);
    for (const Buffer& other : buffers_) {
      if (&other == &input || !(other.written || input.written) || other.kind == Kind::output) continue;
      const char* const at = other.base + (other.kind == Kind::arena ? 0 : other.first);
      const int64_t bytes = other.kind == Kind::arena   ? other.bytes
                            : other.kind == Kind::input ? extent(inputs[other.index])
                                                        : extent(other.view);
      if (begin < at + bytes && at < end) return true;
    }
  }
  return false;
}

void ProgramMemory::bind(const std::vector<py::object>& outputs) {
  for (Buffer& buffer : buffers_)
    if (buffer.kind == Kind::output) buffer.base = memory_of(read_plain(outputs[buffer.index].ptr()), buffer);
}

int ProgramMemory::traverse(visitproc visit, void* arg) const {
  for (const Buffer& buffer : buffers_) Py_VISIT(buffer.tensor.ptr());
  return 0;
}

}  // namespace fastnn
