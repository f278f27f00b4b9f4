#include "gemm/cuda/launch_tensor.cuh"

namespace fastnn::cuda {

void run_tf32(const char* op, Float32 float32, const Product& p, const Plan& plan, Workspace& workspace,
              cudaStream_t stream) {
  if (float32 == Float32::tf32) return launch_tensor<float, 128, Mma::tf32>(op, p, plan, workspace, stream);
  launch_tensor<float, 128, Mma::tf32_3x>(op, p, plan, workspace, stream);
}

}  // namespace fastnn::cuda
