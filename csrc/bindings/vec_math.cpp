#include "ops/vec_math/vec_math.h"

#include "bindings/memory_ranges.h"
#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "dispatch/cpu_dispatch.h"

namespace fastnn {

namespace {

template <VecFunction VecMathKernels::* function>
void define(pybind11::module_& m, const char* name) {
  m.def(name, [name](const TensorView& x, const TensorView& y) {
    check_floating(name, "input", x);
    check_dtype(name, "output", y, x.dtype);
    check_same_shape(name, "output", y, x);
    check_contiguous(name, "input", x);
    check_contiguous(name, "output", y);
    check_apart(name, {&y}, {&x});
    (cpu_kernels().vec_math.*function)(x.dtype, x.data, y.data, x.numel());
  });
}

}  // namespace

void register_vec_math(pybind11::module_& m) {
  define<&VecMathKernels::exp>(m, "exp");
  define<&VecMathKernels::log>(m, "log");
  define<&VecMathKernels::log1p>(m, "log1p");
  define<&VecMathKernels::sigmoid>(m, "sigmoid");
  define<&VecMathKernels::tanh>(m, "tanh");
  define<&VecMathKernels::normal_cdf>(m, "normal_cdf");
}

}  // namespace fastnn
