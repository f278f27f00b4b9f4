// Instructions of a captured step: what the recorder (python/fastnn/capture/) made of torch's ops.
//
// A kernel is given tensors of fixed shapes whose addresses change from call to call. It runs on a team
// (core/team.h): it shares its work by parallel_for, no value depends on the number of threads, and results
// match torch's, including NaN and infinity. Operands, including results, have any strides; a result may be
// exactly the same view as an input only if the instruction's contract says so. Empty tensors are legal.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"

namespace fastnn {

struct Instruction;
using InstructionKernel = void (*)(const Instruction&);

struct Instruction {
  InstructionKernel run;
  const TensorView* operands;  // results first, then inputs
  const double* numbers;
  const int64_t* code;
  int64_t operand_count, number_count, code_count;
  // For an instruction that checks indices, its last result: kAllWell, or the first index out of range
  // (INT64_MIN for one that equals kAllWell), with which no memory has been accessed. Null for others.
  const int64_t* bad_index;
};

constexpr int64_t kAllWell = -1;

struct NamedInstruction {
  const char* name;
  InstructionKernel run;
};

// The instructions of one file. Each instruction's contract is above its kernel.
struct InstructionFamily {
  const NamedInstruction* instructions;
  int64_t count;
};

struct ProgramKernels {
  InstructionKernel (*find)(const char* name);  // null if there is none of that name
  // Runs them in order on up to `threads` threads as one team. Returns how many ran without a bad index:
  // `count` if there was none.
  int64_t (*run)(const Instruction* instructions, int64_t count, int64_t threads);
};

namespace FASTNN_ISA {
InstructionFamily batch_norm_instructions();
InstructionFamily copy_instructions();
InstructionFamily indexing_instructions();
InstructionFamily layer_norm_instructions();
InstructionFamily nll_instructions();
InstructionFamily product_instructions();
InstructionFamily softmax_instructions();
InstructionFamily elementwise_instructions();
InstructionFamily reduce_instructions();
ProgramKernels program_kernels();
}  // namespace FASTNN_ISA

}  // namespace fastnn
