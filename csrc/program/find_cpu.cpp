// Instructions by name, and a run of them.
#include "core/parallel.h"
#include "program/instruction.h"

namespace fastnn::FASTNN_ISA {

namespace {

bool same(const char* a, const char* b) {
  while (*a && *a == *b) ++a, ++b;
  return *a == *b;
}

InstructionKernel find(const char* name) {
  const InstructionFamily families[] = {
      batch_norm_instructions(), copy_instructions(),       elementwise_instructions(),
      indexing_instructions(),   layer_norm_instructions(), nll_instructions(),
      product_instructions(),    reduce_instructions(),     softmax_instructions(),
  };
  for (const InstructionFamily& family : families)
    for (int64_t i = 0; i < family.count; ++i)
      if (same(family.instructions[i].name, name)) return family.instructions[i].run;
  return nullptr;
}

int64_t run(const Instruction* instructions, int64_t count, int64_t threads) {
  int64_t done = count;
  run_as_team(threads < max_threads() ? threads : max_threads(), [&] {
    for (int64_t i = 0; i < count; ++i) {
      instructions[i].run(instructions[i]);
      if (const int64_t* const flag = instructions[i].bad_index) {
        const bool bad = *flag != kAllWell;
        wait_for_team();  // a faster member may write its next result over the flag
        if (bad) {
          if (leads_team()) done = i;
          return;
        }
      }
    }
  });
  return done;
}

}  // namespace

ProgramKernels program_kernels() { return {find, run}; }

}  // namespace fastnn::FASTNN_ISA
