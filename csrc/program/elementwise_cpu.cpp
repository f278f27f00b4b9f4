#include "core/parallel.h"
#include "program/elementwise/machine.h"

namespace fastnn::FASTNN_ISA {

namespace {

void store_total(const ElementwiseProgram& program, int64_t s, double sum) {
  const TensorView& y = program.operands[program.sums[ElementwiseProgram::kSumWords * s + 2]];
  const double total = sum / program.divisors[s];
  if (y.dtype == DType::f32)
    *y.as<float>() = static_cast<float>(total);
  else
    *y.as<double>() = total;
}

// A program of micro-ops over operands of one shape (broadcast by strides of 0, dimensions collapsed as far
// as all of them allow). Results that are sums over all positions have one element; their sums are added in
// double and divided by their divisor. The memory of a result may be read through exactly the same view, and
// otherwise overlaps nothing. Nothing is empty, except for sums. Code and numbers: program.h.
void elementwise(const Instruction& instruction) {
  const ElementwiseProgram program(instruction);
  const Blocks blocks(program);
  const int64_t sums = program.sum_count;
  double* const partial =
      sums && blocks.count > 1
          ? static_cast<double*>(shared_scratch(Scratch::accumulate,
                                                static_cast<size_t>(blocks.count * sums) * sizeof(double)))
          : nullptr;
  const int64_t values = blocks.count ? program.domain.numel() / blocks.count : 1;
  parallel_for(blocks.count, (program.grain + values - 1) / values, [&](int64_t begin, int64_t end) {
    Machine machine(program);
    for (int64_t i = begin; i < end; ++i) {
      const Block block = blocks.block(i);
      machine.run(block);
      for (int64_t s = 0; s < sums; ++s) {
        const double sum = machine.sum(s, block.count);
        if (partial)
          partial[i * sums + s] = sum;
        else
          store_total(program, s, sum);
      }
    }
  });
  if (!sums || blocks.count == 1) return;
  if (leads_team()) {
    for (int64_t s = 0; s < sums; ++s) {
      double sum = 0;
      for (int64_t i = 0; i < blocks.count; ++i) sum += partial[i * sums + s];
      store_total(program, s, sum);
    }
  }
  wait_for_team();
}

constexpr NamedInstruction kInstructions[] = {{"elementwise", elementwise}};

}  // namespace

InstructionFamily elementwise_instructions() {
  return {kInstructions, sizeof(kInstructions) / sizeof(*kInstructions)};
}

}  // namespace fastnn::FASTNN_ISA
