// Working memory of kernels, 64-byte aligned (a cache line, and one AVX-512 vector).
#pragma once

#include <cstddef>

namespace fastnn {

// Throws std::bad_alloc, which becomes Python's MemoryError.
[[noreturn]] void throw_out_of_memory();

// Memory that only grows.
class ScratchBuffer {
 public:
  ScratchBuffer() = default;
  ~ScratchBuffer();
  ScratchBuffer(const ScratchBuffer&) = delete;
  ScratchBuffer& operator=(const ScratchBuffer&) = delete;

  bool holds(size_t bytes) const { return data_ && bytes_ >= bytes; }
  // Makes it hold `bytes`; its content is lost.
  void grow(size_t bytes);
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Memory of the calling thread, at least `bytes` long; valid until the same thread requests the same
// slot again. It is kept between calls, so that hot paths do not allocate: for buffers whose size is bounded.
enum class Scratch { pack_a, pack_b, accumulate, row, gradient, transposed, registers, count };
void* thread_scratch(Scratch slot, size_t bytes);

// The calling thread's buffers, one a slot.
ScratchBuffer* scratch_buffers();

// Memory that is released at the end of the scope: for buffers as large as the user's tensors.
class ScopedBuffer {
 public:
  explicit ScopedBuffer(size_t bytes);
  ~ScopedBuffer();
  ScopedBuffer(const ScopedBuffer&) = delete;
  ScopedBuffer& operator=(const ScopedBuffer&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

}  // namespace fastnn
