// A matrix product on CUDA and what is done with its sums, as described by the host and read by kernels.
//   C (M, N) = A (M, K) B (N, K)^T for each of `batches`
// All tensors have one floating-point dtype; sums are float32, of float64 float64.
#pragma once

#include <cuda_runtime_api.h>

#include "core/activation/activation.h"
#include "core/dtype.h"

namespace fastnn::cuda {

// Element (i, j) of batch b is `b * batch + i * row + j * column` elements after `data`.
struct Matrix {
  const void* data = nullptr;
  int64_t row = 0, column = 0, batch = 0;

  Matrix transposed() const { return {data, column, row, batch}; }
};

// v = scale C + bias, which is stored in z; y = act(v), or y = v act'(saved) if `saved` is given; or, with
// `add`, y += scale C.
struct Epilogue {
  void* y = nullptr;           // (batches, M, N) contiguous; with `add` of the type of the sums
  void* z = nullptr;           // the same, or null
  const void* bias = nullptr;  // (N), or null
  int64_t bias_stride = 0;
  Matrix saved = {};  // (M, N)
  Activation activation = Activation::none;
  double scale = 1;
  bool add = false;
};

// How products of float32 are computed: by multiply-adds in float32, on the tensor cores with factors that
// are rounded to 11 bits, or there with factors of 22 bits in two parts, which is as accurate as float32
// (tensor.cuh). Other types have one way.
enum class Float32 : int { plain, tf32, tf32_3x };

struct Product {
  int64_t m = 0, n = 0, k = 0, batches = 1;
  Matrix a, b;
  Epilogue out;
  void* row_sums = nullptr;  // (M): of A, or null; for one batch; as y with `add`
  bool symmetric = false;    // B is A and the epilogue only scales: one triangle is computed and mirrored
};

// Memory of one call, allocated piece by piece. Without memory it only counts the bytes, so that the same
// code determines how many it needs and then uses them.
class Workspace {
 public:
  Workspace() = default;
  explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)), counting_(false) {}

  void* take(int64_t bytes) {
    constexpr int64_t kAlignment = 256;
    void* const piece = counting_ ? nullptr : memory_ + used_;
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return piece;
  }
  int64_t used() const { return used_; }
  bool counting() const { return counting_; }

 private:
  char* memory_ = nullptr;
  int64_t used_ = 0;
  bool counting_ = true;
};

// Runs the product on the current device in the order of `stream`, or counts its workspace. Bitwise the same
// in every run.
void run_product(const char* op, DType dtype, Float32 float32, const Product& product, Workspace& workspace,
                 cudaStream_t stream);

}  // namespace fastnn::cuda
