// Instructions by name.
#include "program/instruction.h"

namespace fastnn::FASTNN_ISA {

namespace {

bool same(const char* a, const char* b) {
  while (*a && *a == *b) ++a, ++b;
  return *a == *b;
}

InstructionKernel find(const char* name) {
  const InstructionFamily families[] = {
      copy_instructions(),
      elementwise_instructions(),
      reduce_instructions(),
  };
  for (const InstructionFamily& family : families)
    for (int64_t i = 0; i < family.count; ++i)
      if (same(family.instructions[i].name, name)) return family.instructions[i].run;
  return nullptr;
}

}  // namespace

ProgramKernels program_kernels() { return {find}; }

}  // namespace fastnn::FASTNN_ISA
