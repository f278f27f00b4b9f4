#include "bindings/gram_args.h"

#include "bindings/cuda/cuda_call.h"
#include "bindings/cuda/product_call.h"
#include "bindings/cuda/registration.h"
#include "ops/gram/gram_cuda.h"

namespace fastnn::cuda {

namespace {

constexpr const char* kOp = "gram_matrix";
using Optional = std::optional<TensorView>;

int64_t forward(const TensorView& f, double scale, const TensorView& g, int float32,
                const Optional& workspace) {
  check_gram_forward(f, g);
  const CudaCall call(kOp, {&f, &g, pointer(workspace)});
  return with_workspace(kOp, pointer(workspace), [&](Workspace& memory) {
    gram_forward(f, scale, g, read_float32(kOp, float32), memory, call.stream());
  });
}

int64_t backward(const TensorView& dg, const TensorView& f, double scale, const TensorView& df, int float32,
                 const Optional& workspace) {
  check_gram_backward(dg, f, df);
  const CudaCall call(kOp, {&dg, &f, &df, pointer(workspace)});
  return with_workspace(kOp, pointer(workspace), [&](Workspace& memory) {
    gram_backward(dg, f, scale, df, read_float32(kOp, float32), memory, call.stream());
  });
}

}  // namespace

void register_gram(pybind11::module_& m) {
  m.def("gram_forward", &forward);
  m.def("gram_backward", &backward);
}

}  // namespace fastnn::cuda
