#include "ops/cross_entropy/cross_entropy.h"

#include <optional>

#include "bindings/class_indices.h"
#include "bindings/cross_entropy_args.h"
#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/huge_pages.h"
#include "dispatch/cpu_dispatch.h"

namespace fastnn {

namespace {

double forward(const TensorView& x, const TensorView& target, const std::optional<TensorView>& weight,
               const TensorView& loss, const std::optional<TensorView>& gradient, int64_t ignore_index,
               int reduction, double label_smoothing, double z_loss) {
  const CrossEntropyArgs args = cross_entropy_args::read_forward(
      x, target, pointer(weight), loss, pointer(gradient), ignore_index, reduction, label_smoothing, z_loss);
  prefer_huge_pages({pointer(gradient)});
  CrossEntropyResult result;
  {
    const KernelCall call(x.numel());
    result = cpu_kernels().cross_entropy.forward(args);
  }
  if (result.bad_row >= 0) throw target_out_of_bounds(args, result.bad_row);
  return result.gradient_scale;
}

void scale_gradient(const TensorView& gradient, const TensorView& dy, double scale) {
  CrossEntropyArgs args = {};
  const bool scalar = cross_entropy_args::read_scaling(gradient, dy, args);
  const KernelCall call(gradient.numel());
  cpu_kernels().cross_entropy.scale_gradient(args, dy.data, scalar, scale);
}

}  // namespace

void register_cross_entropy(pybind11::module_& m) {
  m.def("cross_entropy_forward", &forward);
  m.def("cross_entropy_scale_gradient", &scale_gradient);
}

}  // namespace fastnn
