// Memory of the module, and what becomes of a call for which there is none left.
#include <cstdlib>

#include "core/scratch.h"
#include "fastnn.h"

// Throws in JavaScript, which ends the call that is under way and sets the stack pointer back (memory.js):
// WebAssembly's own exceptions are not in every browser's reach yet. Destructors do not run, so the call's
// temporary memory is lost; scratch memory, and what the caller allocated, is not.
extern "C" __attribute__((import_module("env"), import_name("out_of_memory"))) [[noreturn]] void
out_of_memory();

// Thread-local objects live as long as the module: it has one thread, which never ends.
extern "C" int __cxa_thread_atexit(void (*)(void*), void*, void*) { return 0; }

namespace fastnn {

void throw_out_of_memory() { out_of_memory(); }

}  // namespace fastnn

void* fastnn_allocate(uint32_t bytes) {
  constexpr size_t kAlignment = 64;                                           // a cache line
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;  // less than `bytes` near 2^32
  void* const data =
      rounded < bytes ? nullptr : std::aligned_alloc(kAlignment, rounded ? rounded : kAlignment);
  if (!data) out_of_memory();
  return data;
}

void fastnn_free(void* data) { std::free(data); }
