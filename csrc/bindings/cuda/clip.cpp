// clip_grad_norm: clips the global norm of gradients on a device and returns it, a tensor there.
#include "bindings/clip_args.h"
#include "bindings/cuda/cuda_call.h"
#include "bindings/cuda/registration.h"
#include "ops/clip/clip_cuda.h"

namespace py = pybind11;

namespace fastnn::cuda {

namespace {

py::object clip_grad_norm(const py::list& grads, double max_norm, bool only_finite) {
  return clip_or_why_not(grads, [&](ClipArgs& args) {
    const CudaCall call(args.device);
    static TorchAttribute float64("torch", "float64");
    const py::object scratch =
        grads[0].attr("new_empty")(clip_scratch(args.count()), py::arg("dtype") = py::handle(float64));
    clip(args.tensors.data(), args.count(), {max_norm, only_finite}, args.norm_view.data,
         read_plain(scratch.ptr()).as<double>(), call.stream());
    return true;
  });
}

}  // namespace

void register_clip(py::module_& m) { m.def("clip_grad_norm", &clip_grad_norm); }

}  // namespace fastnn::cuda
