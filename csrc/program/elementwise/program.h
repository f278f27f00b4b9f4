// How the code of an elementwise instruction is read: python/fastnn/capture/elementwise_program.py writes it.
#pragma once

#include "program/elementwise/micro_op.h"
#include "program/instruction.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Values per block: registers then stay in the nearest caches, and the overhead of a micro-op is small
// compared with its arithmetic.
constexpr int64_t kBlockValues = 1024;

// More than the compiler of programs uses.
constexpr int64_t kMaxSlots = 320, kMaxMicros = 160;

// Where the values of an operand are while a block is computed: in its memory; one value for all positions;
// nowhere, if the operand is a sum's result. Otherwise the number of the register that they are copied to or
// from.
constexpr int64_t kDirect = -1, kUniform = -2, kTotal = -3;

// Slots are numbered: operands, constants, registers of one value, registers of a block.
struct ElementwiseProgram {
  static constexpr int64_t kHeader = 11, kMicroWords = 5, kSumWords = 3;

  explicit ElementwiseProgram(const Instruction& instruction)
      : operands(instruction.operands),
        operand_count(instruction.operand_count),
        result_count(instruction.code[0]),
        domain(instruction.operands[instruction.code[1]]),
        by_rows(instruction.code[2]),
        grain(instruction.code[3]),
        constant_count(instruction.code[4]),
        uniform_count(instruction.code[5]),
        register_count(instruction.code[6]),
        register_bytes(instruction.code[7]),
        uniform_micro_count(instruction.code[8]),
        micro_count(instruction.code[9]),
        sum_count(instruction.code[10]),
        places(instruction.code + kHeader),
        constant_types(places + operand_count),
        micros(constant_types + constant_count),
        sums(micros + kMicroWords * micro_count),
        constants(instruction.numbers),
        divisors(constants + constant_count) {}

  int64_t first_register() const { return operand_count + constant_count + uniform_count; }

  const TensorView* const operands;  // results first
  const int64_t operand_count, result_count;
  const TensorView& domain;  // an operand with the shape of the loop
  const bool by_rows;        // blocks end with the last dimension
  const int64_t grain;       // values that are worth a second thread
  const int64_t constant_count, uniform_count, register_count, register_bytes;
  const int64_t uniform_micro_count, micro_count;  // those of one value come first
  const int64_t sum_count;
  const int64_t* const places;          // one per operand
  const int64_t* const constant_types;  // one per constant
  const int64_t* const micros;          // row * kTypes + type, dst, a, b, c
  const int64_t* const sums;            // slot, type, operand
  const double* const constants;
  const double* const divisors;  // one per sum
};

}  // namespace

}  // namespace fastnn::FASTNN_ISA
