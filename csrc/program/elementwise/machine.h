// Runs the micro-ops of an elementwise program, block by block.
#pragma once

#include "core/block_sum.h"
#include "program/elementwise/gather.h"
#include "program/elementwise/program.h"
#include "program/elementwise/table.h"

namespace fastnn::FASTNN_ISA {

namespace {

// The values [begin, begin + count), counted as in a contiguous tensor; if blocks end with rows, they are in
// `row`, from `column` on.
struct Block {
  int64_t begin, count, row, column;
};

// How a shape is split into blocks, which depends on nothing else: sums are added up by blocks.
class Blocks {
 public:
  explicit Blocks(const ElementwiseProgram& program)
      : total_(program.domain.numel()),
        row_(program.by_rows ? program.domain.shape[program.domain.ndim - 1] : total_),
        in_row_((row_ + kBlockValues - 1) / kBlockValues),
        count(total_ ? total_ / row_ * in_row_ : 0) {}

  Block block(int64_t i) const {
    const int64_t row = in_row_ == count ? 0 : i / in_row_;
    const int64_t column = (i - row * in_row_) * kBlockValues;
    return {row * row_ + column, min(kBlockValues, row_ - column), row, column};
  }

 private:
  const int64_t total_, row_, in_row_;

 public:
  const int64_t count;
};

// Offset in elements from the beginning of x to a block.
inline int64_t offset_of(const TensorView& x, const Block& block) {
  int64_t offset = block.column * x.strides[x.ndim - 1], row = block.row;
  for (int d = x.ndim - 2; d > 0; --d) {
    const int64_t before = row / x.shape[d];
    offset += (row - before * x.shape[d]) * x.strides[d];
    row = before;
  }
  return x.ndim > 1 ? offset + row * x.strides[0] : offset;
}

// The state of one thread.
class Machine {
 public:
  explicit Machine(const ElementwiseProgram& program) : program_(program) {
    const int64_t singles = program.first_register();
    char* const scratch = static_cast<char*>(thread_scratch(
        Scratch::registers,
        static_cast<size_t>(singles * kSlotBytes + program.register_count * program.register_bytes)));
    registers_ = scratch + singles * kSlotBytes;
    for (int64_t i = 0; i < program.operand_count; ++i) place_operand(i, scratch + i * kSlotBytes);
    for (int64_t i = program.operand_count; i < singles; ++i) slots_[i] = {scratch + i * kSlotBytes, 0};
    for (int64_t r = 0; r < program.register_count; ++r) slots_[singles + r] = {register_at(r), 1};
    for (int64_t i = 0; i < program.constant_count; ++i) fill_constant(i);
    for (int64_t i = 0; i < program.micro_count; ++i) {
      const int64_t* const word = program.micros + ElementwiseProgram::kMicroWords * i;
      micros_[i] = {kMicroOps[word[0] / kTypes].of_type[word[0] % kTypes], static_cast<int32_t>(word[1]),
                    static_cast<int32_t>(word[2]), static_cast<int32_t>(word[3]),
                    static_cast<int32_t>(word[4])};
    }
    for (int64_t i = 0; i < program.uniform_micro_count; ++i) micros_[i].run(slots_, micros_[i], 1);
  }

  void run(const Block& block) {
    for (int64_t i = 0; i < program_.operand_count; ++i) enter(i, block);
    for (int64_t i = program_.uniform_micro_count; i < program_.micro_count; ++i)
      micros_[i].run(slots_, micros_[i], block.count);
    for (int64_t i = 0; i < program_.result_count; ++i)
      if (program_.places[i] >= 0)
        scatter_values(slots_[i].data, program_.operands[i], block.begin, block.count);
  }

  // The sum of the block's values of sum `s`.
  double sum(int64_t s, int64_t count) const {
    const int64_t* const words = program_.sums + ElementwiseProgram::kSumWords * s;
    const char* const data = slots_[words[0]].data;
    return words[1] == 0 ? sum_of(reinterpret_cast<const float*>(data), count)
                         : sum_of(reinterpret_cast<const double*>(data), count);
  }

 private:
  template <class T>
  static double sum_of(const T* x, int64_t count) {
    return block_sum(x, count, T(0), [](Vec<T> v, int64_t, int) { return v; });
  }

  char* register_at(int64_t r) const { return registers_ + r * program_.register_bytes; }

  void place_operand(int64_t i, char* single) {
    const TensorView& x = program_.operands[i];
    const int64_t place = program_.places[i];
    if (place == kDirect) {
      slots_[i] = {x.as<char>(), 1};
    } else if (place == kUniform) {
      slots_[i] = {single, 0};
      repeat_bytes(single, x.as<char>(), dtype_size(x.dtype));
    } else if (place >= 0) {
      slots_[i] = {register_at(place), 1};
    }
  }

  void fill_constant(int64_t i) {
    char* const slot = slots_[program_.operand_count + i].data;
    const double value = program_.constants[i];
    switch (program_.constant_types[i]) {
      case 0: {
        const float narrow = static_cast<float>(value);
        return repeat_value<float>(slot, reinterpret_cast<const char*>(&narrow));
      }
      case 1:
        return repeat_value<double>(slot, reinterpret_cast<const char*>(&value));
      case 2: {
        const int64_t whole = static_cast<int64_t>(value);
        return repeat_value<int64_t>(slot, reinterpret_cast<const char*>(&whole));
      }
      default: {
        const uint8_t truth = value != 0;
        return repeat_value<uint8_t>(slot, reinterpret_cast<const char*>(&truth));
      }
    }
  }

  // Points an operand's slot to a block.
  void enter(int64_t i, const Block& block) {
    const TensorView& x = program_.operands[i];
    const int64_t place = program_.places[i], size = dtype_size(x.dtype);
    if (place == kDirect) {
      const int64_t offset = program_.by_rows ? offset_of(x, block) : block.begin;
      slots_[i].data = x.as<char>() + offset * size;
    } else if (place >= 0 && i >= program_.result_count) {
      if (program_.by_rows && x.strides[x.ndim - 1] == 0) {
        slots_[i].step = 0;
        repeat_bytes(slots_[i].data, x.as<char>() + offset_of(x, block) * size, size);
      } else {
        gather_values(slots_[i].data, x, block.begin, block.count);
      }
    }
  }

  const ElementwiseProgram& program_;
  char* registers_;
  Slot slots_[kMaxSlots];
  Micro micros_[kMaxMicros];
};

}  // namespace

}  // namespace fastnn::FASTNN_ISA
