#include "core/cuda/dtype.cuh"
#include "core/cuda/launch.cuh"
#include "core/dtype_dispatch.h"
#include "ops/gram/gram_cuda.h"

namespace fastnn::cuda {

namespace {

constexpr const char* kOp = "gram_matrix";
constexpr int kSumThreads = 256;

Matrix matrices_of(const TensorView& t) { return {t.data, t.strides[1], t.strides[2], t.strides[0]}; }

// sum = G + G^T of each batch, (B, C, C) contiguous, rounded to T: a factor of the gradient.
template <class T>
__global__ void __launch_bounds__(kSumThreads) add_transposed(Matrix g, int64_t batches, int64_t c, T* sum) {
  const int64_t at = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  if (at >= batches * c * c) return;
  const int64_t batch = at / (c * c), i = at % (c * c) / c, j = at % c;
  const T* const from = static_cast<const T*>(g.data) + batch * g.batch;
  sum[at] = from_acc<T>(to_acc(from[i * g.row + j * g.column]) + to_acc(from[j * g.row + i * g.column]));
}

}  // namespace

void gram_forward(const TensorView& f, double scale, const TensorView& g, Float32 float32,
                  Workspace& workspace, cudaStream_t stream) {
  Product p;
  p.batches = f.shape[0], p.m = p.n = f.shape[1], p.k = f.shape[2];
  p.a = p.b = matrices_of(f);
  p.out.y = g.data;
  p.out.scale = scale;
  p.symmetric = true;
  run_product(kOp, f.dtype, float32, p, workspace, stream);
}

void gram_backward(const TensorView& dg, const TensorView& f, double scale, const TensorView& df,
                   Float32 float32, Workspace& workspace, cudaStream_t stream) {
  const int64_t batches = f.shape[0], c = f.shape[1];
  void* const sum = workspace.take(batches * c * c * dtype_size(f.dtype));
  if (!workspace.counting() && batches * c > 0)
    dispatch_floating(f.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      launch(kOp, add_transposed<T>, grid_blocks(ceil_div(batches * c * c, int64_t{kSumThreads}), kOp),
             kSumThreads, 0, stream, matrices_of(dg), batches, c, static_cast<T*>(sum));
    });
  Product p;
  p.batches = batches, p.m = p.k = c, p.n = f.shape[2];
  p.a = {sum, c, 1, c * c};
  p.b = matrices_of(f).transposed();
  p.out.y = df.data;
  p.out.scale = scale;
  run_product(kOp, f.dtype, float32, p, workspace, stream);
}

}  // namespace fastnn::cuda
