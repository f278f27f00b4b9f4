#include "gemm/cuda/launch.cuh"

namespace fastnn::cuda {

void run_product(const char* op, DType dtype, Float32 float32, const Product& product, Workspace& workspace,
                 cudaStream_t stream) {
  const Plan plan = plan_product(dtype, float32, product, device_limits().multiprocessors);
  switch (dtype) {
    case DType::bf16:
      return run_bfloat16(op, product, plan, workspace, stream);
    case DType::f16:
      return run_float16(op, product, plan, workspace, stream);
    case DType::f64:
      return run_float64(op, product, plan, workspace, stream);
    default:
      if (float32 == Float32::plain) return run_float32(op, product, plan, workspace, stream);
      return run_tf32(op, float32, product, plan, workspace, stream);
  }
}

}  // namespace fastnn::cuda
