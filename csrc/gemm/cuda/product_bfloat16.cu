#include "gemm/cuda/launch_tensor.cuh"

namespace fastnn::cuda {

void run_bfloat16(const char* op, const Product& p, const Plan& plan, Workspace& workspace,
                  cudaStream_t stream) {
  if (plan.tile == 128) return launch_tensor<bfloat16, 128, Mma::direct>(op, p, plan, workspace, stream);
  launch_tensor<bfloat16, 64, Mma::direct>(op, p, plan, workspace, stream);
}

}  // namespace fastnn::cuda
