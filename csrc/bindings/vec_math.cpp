#include "ops/vec_math/vec_math.h"

#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/cpu_dispatch.h"

namespace fastnn {

namespace {

void check_pair(const char* op, const TensorView& x, const TensorView& y) {
  check_floating(op, "input", x);
  check_dtype(op, "output", y, x.dtype);
  check_same_shape(op, "output", y, x);
  check_contiguous(op, "input", x);
  check_contiguous(op, "output", y);
}

void vec_exp(const TensorView& x, const TensorView& y) {
  check_pair("exp", x, y);
  cpu_kernels().vec_math.exp(x.dtype, x.data, y.data, x.numel());
}

void vec_log(const TensorView& x, const TensorView& y) {
  check_pair("log", x, y);
  cpu_kernels().vec_math.log(x.dtype, x.data, y.data, x.numel());
}

}  // namespace

void register_vec_math(pybind11::module_& m) {
  m.def("exp", &vec_exp);
  m.def("log", &vec_log);
}

}  // namespace fastnn
