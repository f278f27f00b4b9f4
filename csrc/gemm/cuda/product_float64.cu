#include "gemm/cuda/launch_plain.cuh"

namespace fastnn::cuda {

void run_float64(const char* op, const Product& p, const Plan& plan, Workspace& workspace,
                 cudaStream_t stream) {
  if (plan.tile == 64) return launch_plain<double, 64>(op, p, plan, workspace, stream);
  launch_plain<double, 32>(op, p, plan, workspace, stream);
}

}  // namespace fastnn::cuda
