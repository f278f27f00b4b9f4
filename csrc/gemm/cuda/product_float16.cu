#include "gemm/cuda/launch_tensor.cuh"

namespace fastnn::cuda {

void run_float16(const char* op, const Product& p, const Plan& plan, Workspace& workspace,
                 cudaStream_t stream) {
  if (plan.tile == 128) return launch_tensor<float16, 128, Mma::direct>(op, p, plan, workspace, stream);
  launch_tensor<float16, 64, Mma::direct>(op, p, plan, workspace, stream);
}

}  // namespace fastnn::cuda
