#include "gemm/cuda/launch_plain.cuh"

namespace fastnn::cuda {

void run_float32(const char* op, const Product& p, const Plan& plan, Workspace& workspace,
                 cudaStream_t stream) {
  if (plan.tile == 128) return launch_plain<float, 128>(op, p, plan, workspace, stream);
  if (plan.tile == 64) return launch_plain<float, 64>(op, p, plan, workspace, stream);
  launch_plain<float, 32>(op, p, plan, workspace, stream);
}

}  // namespace fastnn::cuda
