#include "bindings/gram_args.h"

#include "bindings/cuda/cuda_call.h"
#include "bindings/cuda/product_call.h"
#include "bindings/cuda/registration.h"
#include "ops/gram/gram_cuda.h"

namespace fastnn::cuda {

namespace {

constexpr const char* kGram = "gram_matrix";
using Optional = std::optional<TensorView>;

int64_t checked_gram_forward(const TensorView& f, double scale, const TensorView& g, int float32,
                             const Optional& workspace) {
  check_gram_forward(f, g);
  const CudaCall call(kGram, {&f, &g, pointer(workspace)});
  return with_workspace(kGram, pointer(workspace), [&](Workspace& memory) {
    gram_forward(f, scale, g, read_float32(kGram, float32), memory, call.stream());
  });
}

int64_t checked_gram_backward(const TensorView& dg, const TensorView& f, double scale, const TensorView& df,
                              int float32, const Optional& workspace) {
  check_gram_backward(dg, f, df);
  const CudaCall call(kGram, {&dg, &f, &df, pointer(workspace)});
  return with_workspace(kGram, pointer(workspace), [&](Workspace& memory) {
    gram_backward(dg, f, scale, df, read_float32(kGram, float32), memory, call.stream());
  });
}

}  // namespace

void register_gram(pybind11::module_& m) {
  m.def("gram_forward", &checked_gram_forward);
  m.def("gram_backward", &checked_gram_backward);
}

}  // namespace fastnn::cuda
