#include "core/parallel.h"
#include "program/instruction.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Values that are worth a second thread.
constexpr int64_t kCopyGrain = 32768;

void copy_bytes(char* to, const char* from, int64_t size) {
  __builtin_memcpy(to, from, static_cast<size_t>(size));
}

// y = x, of one dtype; both contiguous and of one size.
void copy(const Instruction& i) {
  const TensorView &y = i.operands[0], &x = i.operands[1];
  const int64_t size = dtype_size(y.dtype);
  parallel_for(y.numel(), kCopyGrain, [&](int64_t begin, int64_t end) {
    copy_bytes(y.as<char>() + begin * size, x.as<const char>() + begin * size, (end - begin) * size);
  });
}

// y = 0, contiguous.
void zero(const Instruction& i) {
  const TensorView& y = i.operands[0];
  const int64_t size = dtype_size(y.dtype);
  parallel_for(y.numel(), kCopyGrain, [&](int64_t begin, int64_t end) {
    __builtin_memset(y.as<char>() + begin * size, 0, static_cast<size_t>((end - begin) * size));
  });
}

constexpr NamedInstruction kInstructions[] = {{"copy", copy}, {"zero", zero}};

}  // namespace

InstructionFamily copy_instructions() {
  return {kInstructions, sizeof(kInstructions) / sizeof(*kInstructions)};
}

}  // namespace fastnn::FASTNN_ISA
