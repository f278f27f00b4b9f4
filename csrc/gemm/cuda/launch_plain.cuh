// Chooses among the tiles of plain_product.
#pragma once

#include "gemm/cuda/launch.cuh"
#include "gemm/cuda/plain.cuh"

namespace fastnn::cuda {

template <class T, int kTile>
void launch_plain(const char* op, const Product& p, const Plan& plan, Workspace& workspace,
                  cudaStream_t stream) {
  launch_product<T, plain_product<T, kTile>>(op, task_of<T>(p, plan, true, true), plan,
                                             PlainShape<T, kTile>::kThreads, PlainMemory<T, kTile>::kBytes,
                                             workspace, stream);
}

}  // namespace fastnn::cuda
