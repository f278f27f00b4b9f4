#include "core/dtype_dispatch.h"
#include "ops/linear/linear_cuda.h"
#include "ops/linear/passes.cuh"

namespace fastnn::cuda {

namespace {

constexpr const char* kOp = "linear";

Matrix matrix_of(const TensorView& t) { return {t.data, t.strides[0], t.strides[1], 0}; }

template <class T>
bool aligned(const void* p) {
  return equally_aligned(static_cast<const char*>(nullptr), p);
}
template <class T>
bool has_packs(const Matrix& matrix) {
  return matrix.column == 1 && matrix.row % kPackSize<T> == 0 && aligned<T>(matrix.data);
}

}  // namespace

void linear_forward(const LinearForward& args, Float32 float32, Workspace& workspace, cudaStream_t stream) {
  Product p;
  p.m = args.x.shape[0], p.n = args.weight.shape[0], p.k = args.x.shape[1];
  p.a = matrix_of(args.x), p.b = matrix_of(args.weight);
  p.out.y = args.y.data;
  p.out.z = args.z ? args.z->data : nullptr;
  if (args.bias) p.out.bias = args.bias->data, p.out.bias_stride = args.bias->strides[0];
  p.out.activation = args.activation;
  run_product(kOp, args.x.dtype, float32, p, workspace, stream);
}

void linear_finish(const TensorView& y, const TensorView* bias, Activation activation, const TensorView* z,
                   cudaStream_t stream) {
  Epilogue out;
  out.y = y.data;
  out.z = z ? z->data : nullptr;
  if (bias) out.bias = bias->data, out.bias_stride = bias->strides[0];
  out.activation = activation;
  const int64_t m = y.shape[0], n = y.shape[1];
  if (m * n == 0) return;
  dispatch_floating(y.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool packs = n % kPackSize<T> == 0 && aligned<T>(out.y) && aligned<T>(out.z);
    const int64_t threads = packs ? m * n / kPackSize<T> : m * n;
    launch(kOp, packs ? finish_product<T, kPackSize<T>> : finish_product<T, 1>,
           grid_blocks(ceil_div(threads, int64_t{kPassThreads}), kOp), kPassThreads, 0, stream, out, m, n);
  });
}

void linear_gradient(const TensorView& dy, const TensorView* saved, Activation activation, void* g, void* db,
                     Workspace& workspace, cudaStream_t stream) {
  GradientPass pass = {};
  pass.m = dy.shape[0], pass.n = dy.shape[1];
  if (pass.n == 0) return;
  pass.dy = matrix_of(dy);
  pass.activation = activation;
  if (activation != Activation::none) pass.saved = matrix_of(*saved);
  pass.g = g, pass.db = db;
  dispatch_floating(dy.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool packs = pass.n % kPackSize<T> == 0 && has_packs<T>(pass.dy) && aligned<T>(g) &&
                       (!saved || has_packs<T>(pass.saved));
    const int columns = kWarp * (packs ? kPackSize<T> : 1);
    // Four blocks for each multiprocessor, 2048 threads in eight of them, unless that leaves less than four
    // rows to a warp; at most 256 sums for each column of the second stage, whose 8 warps then add 32 each.
    constexpr int64_t kFewestRows = 4 * kPassWarps, kMostSums = 256;
    const int64_t column_blocks = ceil_div(pass.n, int64_t{columns});
    const int64_t wanted = ceil_div(int64_t{4} * device_limits().multiprocessors, column_blocks);
    const int64_t possible = max(int64_t{1}, ceil_div(pass.m, kFewestRows));
    const int64_t row_blocks = min(min(wanted, possible), kMostSums);
    pass.rows = max(int64_t{1}, ceil_div(pass.m, row_blocks));
    pass.column_blocks = static_cast<int>(column_blocks);
    pass.row_blocks = static_cast<int>(max(int64_t{1}, ceil_div(pass.m, pass.rows)));
    const bool two_stages = db && pass.row_blocks > 1;
    if (two_stages)
      pass.sums = workspace.take(pass.row_blocks * pass.n * static_cast<int64_t>(sizeof(Acc<T>)));
    if (workspace.counting()) return;
    launch(kOp, packs ? gradient_pass<T, kPackSize<T>> : gradient_pass<T, 1>,
           grid_blocks(column_blocks * pass.row_blocks, kOp), kPassThreads, 0, stream, pass);
    if (two_stages)
      launch(kOp, sum_row_blocks<T>, grid_blocks(ceil_div(pass.n, int64_t{kWarp}), kOp), kPassThreads, 0,
             stream, pass);
  });
}

void linear_add_gradients(const TensorView& dy, const TensorView& x, const TensorView& dw,
                          const TensorView* db, Float32 float32, Workspace& workspace, cudaStream_t stream) {
  Product p;
  p.m = dy.shape[1], p.n = x.shape[1], p.k = dy.shape[0];
  p.a = matrix_of(dy).transposed(), p.b = matrix_of(x).transposed();
  p.out.y = dw.data;
  p.out.add = true;
  if (db) p.row_sums = db->data;
  run_product(kOp, dy.dtype, float32, p, workspace, stream);
}

void linear_backward(const LinearGradients& args, Float32 float32, Workspace& workspace,
                     cudaStream_t stream) {
  const int64_t m = args.dy.shape[0], n = args.dy.shape[1];
  const DType dtype = args.dy.dtype;
  Matrix g = matrix_of(args.dy);
  // Without an activation the product for dW sums its first factor on the way.
  const bool pass = args.activation != Activation::none;
  const bool sums_in_product = !pass && args.db && args.dw && args.dw->shape[1] > 0;
  void* own = nullptr;
  if (pass && (args.dx || args.dw)) {
    own = workspace.take(m * n * dtype_size(dtype));
    g = {own, n, 1, 0};
  }
  if ((pass && (args.dx || args.dw)) || (args.db && !sums_in_product))
    linear_gradient(args.dy, args.saved, args.activation, own,
                    args.db && !sums_in_product ? args.db->data : nullptr, workspace, stream);
  if (args.dx) {
    Product p;
    p.m = m, p.n = args.dx->shape[1], p.k = n;
    p.a = g, p.b = matrix_of(*args.weight).transposed();
    p.out.y = args.dx->data;
    p.out.activation = args.below_activation;
    if (args.below_activation != Activation::none) p.out.saved = matrix_of(*args.below_saved);
    run_product(kOp, dtype, float32, p, workspace, stream);
  }
  if (args.dw) {
    Product p;
    p.m = n, p.n = args.dw->shape[1], p.k = m;
    p.a = g.transposed(), p.b = matrix_of(*args.x).transposed();
    p.out.y = args.dw->data;
    if (sums_in_product) p.row_sums = args.db->data;
    run_product(kOp, dtype, float32, p, workspace, stream);
  }
}

}  // namespace fastnn::cuda
