// From a product and its plan to launches: shared by the files with the kernels of one dtype.
#pragma once

#include "gemm/cuda/epilogue.cuh"
#include "gemm/cuda/plan.h"

namespace fastnn::cuda {

constexpr int kFinishThreads = 256;

// The second stage of a product whose K is split: adds the partial sums of each value in the order of the
// parts. After the values of C come the row sums.
template <class T>
__global__ void __launch_bounds__(kFinishThreads) sum_splits(const __grid_constant__ Task task) {
  using S = Acc<T>;
  const Product& p = task.product;
  const int64_t size = p.m * p.n, values = p.batches * size;
  const int64_t at = int64_t{blockIdx.x} * kFinishThreads + threadIdx.x;
  const auto sum = [&](const void* partials, int64_t first, int64_t stride) {
    const S* const from = static_cast<const S*>(partials) + first;
    S total = from[0];
#pragma unroll 16  // this many loads are in flight: few threads have long sums
    for (int s = 1; s < task.splits; ++s) total += from[s * stride];
    return total;
  };
  if (at < values) {
    const int64_t batch = at / size, i = at % size / p.n, j = at % size % p.n;
    const bool mirrored = p.symmetric && j > i;
    S v[1] = {sum(task.partials, mirrored ? batch * size + j * p.n + i : at, values)};
    finish_values<T, 1>(p.out, p.m, p.n, batch, i, j, v);
  } else if (p.row_sums && at - values < p.m) {
    finish_row_sum<T>(p, at - values, sum(task.partial_row_sums, at - values, p.m));
  }
}

template <class T>
bool packs_along(const Matrix& matrix, bool along_rows, int64_t batches) {
  const int64_t inner = along_rows ? matrix.row : matrix.column,
                outer = along_rows ? matrix.column : matrix.row;
  return inner == 1 && outer % kPackSize<T> == 0 && (batches == 1 || matrix.batch % kPackSize<T> == 0) &&
         equally_aligned(static_cast<const char*>(nullptr), matrix.data);
}

template <class T>
Task task_of(const Product& product, const Plan& plan, bool a_along_rows, bool b_along_rows) {
  Task task = {};
  task.product = product;
  task.chunk = plan.chunk;
  task.splits = static_cast<int>(plan.splits);
  task.row_tiles = static_cast<int>((product.m + plan.tile - 1) / plan.tile);
  task.column_tiles = static_cast<int>((product.n + plan.tile - 1) / plan.tile);
  task.a_packs = packs_along<T>(product.a, a_along_rows, product.batches);
  task.b_packs = packs_along<T>(product.b, b_along_rows, product.batches);
  const void* const z = product.out.z ? product.out.z : product.out.y;
  task.y_packs =
      product.n % kPackSize<T> == 0 && equally_aligned(static_cast<const char*>(nullptr), product.out.y, z);
  return task;
}

// Launches `kKernel`, which takes tiles of plan.tile, and the kernel that adds up its parts.
template <class T, auto kKernel>
void launch_product(const char* op, Task task, const Plan& plan, int threads, int bytes, Workspace& workspace,
                    cudaStream_t stream) {
  const Product& p = task.product;
  if (task.splits > 1) {
    constexpr auto kSize = static_cast<int64_t>(sizeof(Acc<T>));
    task.partials = workspace.take(task.splits * p.batches * p.m * p.n * kSize);
    if (p.row_sums) task.partial_row_sums = workspace.take(task.splits * p.m * kSize);
  }
  if (workspace.counting()) return;
  const int64_t tiles = tiles_of(p, plan.tile);
  if (tiles > 0) {
    grid_blocks(tiles, op);
    task.tiles = static_cast<int>(tiles / p.batches);
    allow_shared_memory<kKernel>(op);
    launch(op, kKernel, grid_blocks(tiles * task.splits, op), static_cast<unsigned>(threads),
           static_cast<size_t>(bytes), stream, task);
  }
  if (task.splits > 1) {
    const int64_t values = p.batches * p.m * p.n + (p.row_sums ? p.m : 0);
    launch(op, sum_splits<T>, grid_blocks(ceil_div(values, int64_t{kFinishThreads}), op), kFinishThreads, 0,
           stream, task);
  }
}

// The targets of run_product's dispatch.
void run_float32(const char* op, const Product& p, const Plan& plan, Workspace& workspace,
                 cudaStream_t stream);
void run_float64(const char* op, const Product& p, const Plan& plan, Workspace& workspace,
                 cudaStream_t stream);
void run_tf32(const char* op, Float32 float32, const Product& p, const Plan& plan, Workspace& workspace,
              cudaStream_t stream);
void run_bfloat16(const char* op, const Product& p, const Plan& plan, Workspace& workspace,
                  cudaStream_t stream);
void run_float16(const char* op, const Product& p, const Plan& plan, Workspace& workspace,
                 cudaStream_t stream);

}  // namespace fastnn::cuda
