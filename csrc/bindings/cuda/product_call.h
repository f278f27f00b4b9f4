// Arguments of a matrix product besides its tensors: workspace for the duration of the call, allocated by
// torch, which knows the stream it is used on; and how float32 is multiplied.
#pragma once

#include "core/check.h"
#include "gemm/cuda/product.h"

namespace fastnn::cuda {

// Numbered as in python/fastnn/ops/_cuda_limits.py.
inline Float32 read_float32(const char* op, int value) {
  check<std::invalid_argument>(value >= 0 && value <= static_cast<int>(Float32::tf32_3x), op,
                               ": float32 must be 0, 1 or 2, got ", value);
  return static_cast<Float32>(value);
}

// Runs `call(Workspace&)` in `given`, a vector of uint8 (or none, if nothing is needed), if it is large
// enough, and returns 0. Otherwise launches nothing and returns the bytes that the call needs.
template <class Call>
int64_t with_workspace(const char* op, const TensorView* given, const Call& call) {
  Workspace needed;
  call(needed);
  if (needed.used() > (given ? given->numel() : 0)) return needed.used();
  if (given) {
    check_vector(op, "workspace", *given, DType::u8, given->shape[0]);
    check_contiguous(op, "workspace", *given);
  }
  Workspace memory(given ? given->data : nullptr);
  call(memory);
  return 0;
}

}  // namespace fastnn::cuda
