#include "ops/probe/probe.h"

#include "bindings/memory_ranges.h"
#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "dispatch/cpu_dispatch.h"

namespace fastnn {

namespace {

// Work in which all threads take part, whatever else runs.
constexpr int64_t kForAllThreads = INT64_MAX;

int64_t probe_fma(int64_t rounds, const TensorView& out) {
  check(out.dtype == DType::f32 || out.dtype == DType::f64, "probe_fma: out must be float32 or float64, got ",
        dtype_name(out.dtype));
  check(out.numel() == 1, "probe_fma: out must hold one element, got shape ", shape_string(out));
  check<std::invalid_argument>(rounds > 0, "probe_fma: rounds must be positive, got ", rounds);
  const KernelCall call(kForAllThreads);
  return cpu_kernels().probe.fma(out.dtype, rounds, out.data);
}

void probe_copy(const TensorView& src, const TensorView& dst) {
  check_dtype("probe_copy", "dst", dst, src.dtype);
  check_same_shape("probe_copy", "dst", dst, src);
  check_contiguous("probe_copy", "src", src);
  check_contiguous("probe_copy", "dst", dst);
  check_apart("probe_copy", {&dst}, {&src});
  const KernelCall call(kForAllThreads);
  cpu_kernels().probe.copy(src.data, dst.data, src.numel() * dtype_size(src.dtype));
}

std::pair<int64_t, int64_t> probe_late(int64_t operations, bool team, int64_t pieces, int64_t nanoseconds) {
  const KernelCall call(operations);
  const LateProbe probe = cpu_kernels().probe.late(team, pieces, nanoseconds);
  return {probe.threads, probe.pieces};
}

}  // namespace

void register_late_probe(pybind11::module_& testing) { testing.def("probe_late", &probe_late); }

void register_probe(pybind11::module_& m) {
  m.def("probe_fma", &probe_fma);
  m.def("probe_copy", &probe_copy);
}

}  // namespace fastnn
