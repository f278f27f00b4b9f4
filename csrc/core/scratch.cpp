#include "core/scratch.h"

#include <cstdlib>

namespace fastnn {

namespace {

constexpr size_t kAlignment = 64;

void* allocate(size_t bytes) {
  void* data = std::aligned_alloc(kAlignment, (bytes + kAlignment) / kAlignment * kAlignment);
  if (!data) throw_out_of_memory();
  return data;
}

}  // namespace

ScratchBuffer::~ScratchBuffer() { std::free(data_); }

void ScratchBuffer::grow(size_t bytes) {
  if (holds(bytes)) return;
  std::free(data_);
  data_ = nullptr;
  data_ = allocate(bytes);
  bytes_ = bytes;
}

ScratchBuffer* scratch_buffers() {
  thread_local ScratchBuffer buffers[static_cast<int>(Scratch::count)];
  return buffers;
}

void* thread_scratch(Scratch slot, size_t bytes) {
  ScratchBuffer& buffer = scratch_buffers()[static_cast<int>(slot)];
  buffer.grow(bytes);
  return buffer.data();
}

ScopedBuffer::ScopedBuffer(size_t bytes) : data_(bytes ? allocate(bytes) : nullptr) {}
ScopedBuffer::~ScopedBuffer() { std::free(data_); }

}  // namespace fastnn
