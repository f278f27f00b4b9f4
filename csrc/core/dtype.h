// Element types that cross the Python boundary, and the storage-only 16-bit types.
#pragma once

#include <cstdint>

namespace fastnn {

enum class DType : uint8_t { f32, f64, bf16, f16, u8, i64, b8 };  // b8: bool, a byte that is 0 or 1

// Storage types: kernels convert to float to compute (core/simd.h) and back to store.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

const char* dtype_name(DType dtype);

constexpr int64_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::u8:
    case DType::b8:
      return 1;
  }
  return 0;
}

constexpr bool is_floating(DType dtype) { return dtype <= DType::f16; }

}  // namespace fastnn
