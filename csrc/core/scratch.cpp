#include "core/scratch.h"

#include <cstdlib>
#include <new>

namespace fastnn {

namespace {

constexpr size_t kAlignment = 64;

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
  ~Buffer() { std::free(data); }
};

void* allocate(size_t bytes) {
  void* data = std::aligned_alloc(kAlignment, (bytes + kAlignment) / kAlignment * kAlignment);
  if (!data) throw std::bad_alloc();
  return data;
}

}  // namespace

void* thread_scratch(Scratch slot, size_t bytes) {
  thread_local Buffer buffers[static_cast<int>(Scratch::count)];
  Buffer& buffer = buffers[static_cast<int>(slot)];
  if (!buffer.data || buffer.bytes < bytes) {
    std::free(buffer.data);
    buffer.data = nullptr;
    buffer.data = allocate(bytes);
    buffer.bytes = bytes;
  }
  return buffer.data;
}

ScopedBuffer::ScopedBuffer(size_t bytes) : data_(bytes ? allocate(bytes) : nullptr) {}
ScopedBuffer::~ScopedBuffer() { std::free(data_); }

}  // namespace fastnn
