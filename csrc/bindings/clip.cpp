// clip_grad_norm: clips the global norm of gradients and returns it.
#include "bindings/clip_args.h"
#include "bindings/registration.h"
#include "dispatch/cpu_dispatch.h"

namespace fastnn {

namespace {

pybind11::object clip_grad_norm(const pybind11::list& grads, double max_norm, bool only_finite) {
  return clip_or_why_not(grads, [&](ClipArgs& args) {
    const KernelCall call(args.elements);
    return cpu_kernels().clip.clip(args.tensors.data(), args.count(), {max_norm, only_finite},
                                   args.norm_view.data);
  });
}

}  // namespace

void register_clip(pybind11::module_& m) { m.def("clip_grad_norm", &clip_grad_norm); }

}  // namespace fastnn
