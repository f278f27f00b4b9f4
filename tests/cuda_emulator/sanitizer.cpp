// Called by -fsanitize=alignment,bounds in kernels: a misaligned access, which a GPU refuses and most CPUs do
// not, or an index outside an array ends the launch with an error. The layouts are those of GCC's and Clang's
// libubsan, version 1 of type mismatches.
#include <cstdint>
#include <cstdio>

#include "scheduler.h"

namespace {

struct Location {
  const char* file;
  uint32_t line, column;
};
struct Type {
  uint16_t kind, info;
  char name[1];  // variable length, ends with a 0
};
struct Mismatch {
  Location location;
  const Type* type;
  unsigned char log_alignment, check;
};
struct OutOfBounds {
  Location location;
  const Type *array, *index;
};

void fail_at(const Location& at, const char* what, const Type* type) {
  char text[512];
  std::snprintf(text, sizeof(text), "%s of type %s at %s:%u", what, type->name, at.file, at.line);
  cuda_emulator::fail(text);
}

}  // namespace

extern "C" {
__attribute__((visibility("default"))) void __ubsan_handle_type_mismatch_v1(const Mismatch* found,
                                                                            uintptr_t) {
  fail_at(found->location, "misaligned access to a value", found->type);
}
__attribute__((visibility("default"))) void __ubsan_handle_out_of_bounds(const OutOfBounds* found,
                                                                         uintptr_t) {
  fail_at(found->location, "index out of bounds of an array", found->array);
}
}
