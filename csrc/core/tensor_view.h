// A tensor as kernels see it: address, shape, strides in elements, dtype, device. It owns nothing.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace fastnn {

struct TensorView {
  // Ops take tensors of few dimensions; leading ones are collapsed before the call.
  static constexpr int kMaxDims = 8;
  static constexpr int16_t kNoCudaDevice = -1;  // in the memory of the CPU

  void* data = nullptr;
  int ndim = 0;
  DType dtype = DType::f32;
  int16_t cuda_device = kNoCudaDevice;
  int64_t shape[kMaxDims] = {};
  int64_t strides[kMaxDims] = {};  // of size-1 dimensions: 0, whatever the producer set

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }

  int64_t numel() const {
    int64_t n = 1;
    for (int d = 0; d < ndim; ++d) n *= shape[d];
    return n;
  }

  bool is_contiguous() const {
    bool dense = true;
    int64_t expected = 1;
    for (int d = ndim - 1; d >= 0; --d) {
      dense = dense && (shape[d] == 1 || strides[d] == expected);
      expected *= shape[d];
    }
    return dense || expected == 0;  // without elements any strides are fine, as in torch
  }
};

// The contiguous (rows, columns) matrix at `data`.
TensorView contiguous_matrix(void* data, DType dtype, int64_t rows, int64_t columns);

}  // namespace fastnn
