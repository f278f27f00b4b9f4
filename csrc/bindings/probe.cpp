#include "ops/probe/probe.h"

#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/cpu_dispatch.h"

namespace fastnn {

namespace {

int64_t probe_fma(int64_t rounds, const TensorView& out) {
  check(out.dtype == DType::f32 || out.dtype == DType::f64, "probe_fma: out must be float32 or float64, got ",
        dtype_name(out.dtype));
  check(out.numel() == 1, "probe_fma: out must hold one element, got shape ", shape_string(out));
  check<std::invalid_argument>(rounds > 0, "probe_fma: rounds must be positive, got ", rounds);
  const ReleaseGil released(rounds);
  return cpu_kernels().probe.fma(out.dtype, rounds, out.data);
}

void probe_copy(const TensorView& src, const TensorView& dst) {
  check_dtype("probe_copy", "dst", dst, src.dtype);
  check_same_shape("probe_copy", "dst", dst, src);
  check_contiguous("probe_copy", "src", src);
  check_contiguous("probe_copy", "dst", dst);
  const ReleaseGil released(src.numel());
  cpu_kernels().probe.copy(src.data, dst.data, src.numel() * dtype_size(src.dtype));
}

}  // namespace

void register_probe(pybind11::module_& m) {
  m.def("probe_fma", &probe_fma);
  m.def("probe_copy", &probe_copy);
}

}  // namespace fastnn
