// Memory for the time of a call, which Python makes: torch's allocator knows the stream it is used on.
#pragma once

#include "core/check.h"
#include "gemm/cuda/product.h"

namespace fastnn::cuda {

// Runs `call(Workspace&)` in `given`, a vector of uint8, if it is large enough, which where nothing is needed
// no tensor is, and returns 0. Otherwise launches nothing and returns the bytes that the call needs.
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
