// Chooses among the layouts of tensor_product.
#pragma once

#include "gemm/cuda/launch.cuh"
#include "gemm/cuda/tensor.cuh"

namespace fastnn::cuda {

template <class T, int kTile, Mma kMma, bool kAAlongRows, bool kBAlongRows>
void launch_layout(const char* op, const Product& p, const Plan& plan, Workspace& workspace,
                   cudaStream_t stream) {
  launch_product<T, tensor_product<T, kTile, kMma, kAAlongRows, kBAlongRows>>(
      op, task_of<T>(p, plan, kAAlongRows, kBAlongRows), plan, TensorShape<kTile>::kThreads,
      TensorMemory<T, kTile, kAAlongRows, kBAlongRows>::kBytes, workspace, stream);
}

// The three products of a layer have x and W along K (forward), dY along K and W along rows (dX), dY and x
// along rows (dW). Anything else is read element by element into one of them.
template <class T, int kTile, Mma kMma>
void launch_tensor(const char* op, const Product& p, const Plan& plan, Workspace& workspace,
                   cudaStream_t stream) {
  const bool a_rows = p.a.row == 1 && p.a.column != 1, b_rows = p.b.row == 1 && p.b.column != 1;
  if (!b_rows)
    launch_layout<T, kTile, kMma, false, false>(op, p, plan, workspace, stream);
  else if (!a_rows)
    launch_layout<T, kTile, kMma, false, true>(op, p, plan, workspace, stream);
  else
    launch_layout<T, kTile, kMma, true, true>(op, p, plan, workspace, stream);
}

}  // namespace fastnn::cuda
