#include "ops/gram/gram.h"

#include "bindings/gram_args.h"
#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/huge_pages.h"
#include "dispatch/cpu_dispatch.h"

namespace fastnn {

namespace {

void gram_forward(const TensorView& f, double scale, const TensorView& g) {
  check_gram_forward(f, g);
  prefer_huge_pages({&g});
  const KernelCall call(f.numel() * f.shape[1] / 16);
  cpu_kernels().gram.forward(f, scale, g);
}

void gram_backward(const TensorView& dg, const TensorView& f, double scale, const TensorView& df) {
  check_gram_backward(dg, f, df);
  prefer_huge_pages({&df});
  const KernelCall call(f.numel() * f.shape[1] / 16);
  cpu_kernels().gram.backward(dg, f, scale, df);
}

}  // namespace

void register_gram(pybind11::module_& m) {
  m.def("gram_forward", &gram_forward);
  m.def("gram_backward", &gram_backward);
}

}  // namespace fastnn
