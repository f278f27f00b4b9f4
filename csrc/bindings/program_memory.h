// The memory that a captured step works on, and where it is in each call.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/tensor_view.h"

namespace fastnn {

// An element of one of the buffers.
struct Operand {
  size_t buffer;
  int64_t offset;  // bytes
};

class ProgramMemory {
 public:
  // (kind, index, tensor, (dtype, shape, strides), requires_grad, first, bytes, written)
  void add(const pybind11::tuple& from);

  // From (buffer, offset), for the layout of `view`.
  Operand read_operand(const pybind11::tuple& from, const TensorView& view);

  char* at(const Operand& operand) const { return buffers_[operand.buffer].base + operand.offset; }

  // Whether its address differs between calls.
  bool moves(const Operand& operand) const { return buffers_[operand.buffer].kind != Kind::arena; }

  // Finds the addresses of everything but the outputs for a call with these arguments. False if something is
  // not as recorded, or if an argument is in memory that the program otherwise writes. Gradients that are
  // written are added to `written_gradients`.
  bool find(const std::vector<TensorView>& inputs, pybind11::list& written_gradients);

  // Sets the outputs of a call.
  void bind(const std::vector<pybind11::object>& outputs);

  int traverse(visitproc visit, void* arg) const;
  void clear() { buffers_.clear(); }

 private:
  enum class Kind { arena, input, external, gradient, output };

  struct Buffer {
    Kind kind{};
    size_t index = 0;         // of an input or an output
    pybind11::object tensor;  // of the arena, of external memory; the parameter of a gradient
    TensorView view;          // the tensor's layout, for external memory and gradients
    bool requires_grad;       // of external memory
    int64_t first;            // byte of the memory at which the tensor begins
    int64_t bytes;
    bool written;
    bool only_here = false;  // instructions reach memory beyond the tensor's own: its address must not change

    char* base = nullptr;  // in the present call
  };

  static char* memory_of(const TensorView& view, const Buffer& buffer);
  static bool find(Buffer& buffer, const std::vector<TensorView>& inputs, pybind11::list& written_gradients);
  bool inputs_overlap(const std::vector<TensorView>& inputs) const;

  std::vector<Buffer> buffers_;
};

}  // namespace fastnn
