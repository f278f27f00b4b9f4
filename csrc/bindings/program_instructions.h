// The native instructions of a captured step.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bindings/program_memory.h"
#include "program/instruction.h"

namespace fastnn {

class ProgramInstructions {
 public:
  // Consecutive instructions.
  struct Run {
    size_t begin = 0, end = 0;
    int64_t threads_worth = 0;
  };

  // Appends ("native", name, operands, numbers, code, results, error) at the end of a run.
  void add(const pybind11::tuple& from, ProgramMemory& memory, Run& run);

  // The number of instructions.
  size_t size() const { return parsed_.size(); }

  // Once all have been added: puts their data at its final address.
  void lay_out(const ProgramMemory& memory);

  // Sets pointers to the memory of the present call.
  void bind(const ProgramMemory& memory);

  // Throws an instruction's error for a bad index.
  void execute(const Run& run) const;

  int traverse(visitproc visit, void* arg) const;
  void clear() { parsed_.clear(); }

 private:
  struct Parsed {
    InstructionKernel run;
    std::string name;
    pybind11::object error;  // makes the exception for a bad index; or None
    size_t results;
    std::vector<Operand> operands;
    std::vector<TensorView> views;
    std::vector<double> numbers;
    std::vector<int64_t> code;
  };

  static int64_t work_of(const Parsed& parsed);

  std::vector<Parsed> parsed_;
  std::vector<Instruction> instructions_;
  std::vector<TensorView> views_;
  std::vector<double> numbers_;
  std::vector<int64_t> codes_;
  std::vector<std::pair<size_t, Operand>> moving_;  // views whose memory differs between calls
};

}  // namespace fastnn
