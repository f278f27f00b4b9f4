#include "ops/linear/linear_cuda.h"

#include "bindings/activation_caster.h"
#include "bindings/cuda/cuda_call.h"
#include "bindings/cuda/product_call.h"
#include "bindings/cuda/registration.h"
#include "bindings/linear_args.h"

namespace fastnn::cuda {

namespace {

constexpr const char* kLinear = "linear";
using Optional = std::optional<TensorView>;

int64_t checked_linear_forward(const TensorView& x, const TensorView& weight, const Optional& bias,
                               Activation activation, const TensorView& y, const Optional& z, int float32,
                               const Optional& workspace) {
  check_linear_forward(x, weight, pointer(bias), y, pointer(z));
  const CudaCall call(kLinear, {&x, &weight, pointer(bias), &y, pointer(z), pointer(workspace)});
  const LinearForward args = {x, weight, pointer(bias), activation, y, pointer(z)};
  return with_workspace(kLinear, pointer(workspace), [&](Workspace& memory) {
    linear_forward(args, read_float32(kLinear, float32), memory, call.stream());
  });
}

// The gradients of a layer, and of the activation of the layer below if x is its output.
int64_t checked_linear_backward(const TensorView& dy, const Optional& saved, Activation activation,
                                const Optional& x, const Optional& weight, const Optional& below_saved,
                                Activation below_activation, const Optional& dx, const Optional& dw,
                                const Optional& db, int float32, const Optional& workspace) {
  const LinearGradients args = {dy,
                                pointer(saved),
                                activation,
                                pointer(x),
                                pointer(weight),
                                pointer(below_saved),
                                below_activation,
                                pointer(dx),
                                pointer(dw),
                                pointer(db)};
  check_linear_backward(args);
  const CudaCall call(kLinear, {&dy, args.saved, args.x, args.weight, args.below_saved, args.dx, args.dw,
                                args.db, pointer(workspace)});
  return with_workspace(kLinear, pointer(workspace), [&](Workspace& memory) {
    linear_backward(args, read_float32(kLinear, float32), memory, call.stream());
  });
}

void checked_linear_finish(const TensorView& y, const Optional& bias, Activation activation,
                           const Optional& z) {
  check_floating(kLinear, "output", y);
  check_ndim(kLinear, "output", y, 2);
  check_contiguous(kLinear, "output", y);
  if (bias) check_vector(kLinear, "bias", *bias, y.dtype, y.shape[1]);
  if (z) {
    check_matrix(kLinear, "preactivation", *z, y.dtype, y.shape[0], y.shape[1]);
    check_contiguous(kLinear, "preactivation", *z);
  }
  const CudaCall call(kLinear, {&y, pointer(bias), pointer(z)});
  linear_finish(y, pointer(bias), activation, pointer(z), call.stream());
}

int64_t checked_linear_gradient(const TensorView& dy, const Optional& saved, Activation activation,
                                const Optional& g, const Optional& db, const Optional& workspace) {
  check_linear_saved(dy, pointer(saved), activation);
  if (g) {
    check_matrix(kLinear, "the gradient before the activation", *g, dy.dtype, dy.shape[0], dy.shape[1]);
    check_contiguous(kLinear, "the gradient before the activation", *g);
  }
  check_linear_bias_gradient(dy, pointer(db));
  const CudaCall call(kLinear, {&dy, pointer(saved), pointer(g), pointer(db), pointer(workspace)});
  return with_workspace(kLinear, pointer(workspace), [&](Workspace& memory) {
    linear_gradient(dy, pointer(saved), activation, g ? g->data : nullptr, db ? db->data : nullptr, memory,
                    call.stream());
  });
}

int64_t checked_linear_add_gradients(const TensorView& dy, const TensorView& x, const TensorView& dw,
                                     const Optional& db, int float32, const Optional& workspace) {
  check_floating(kLinear, "grad_output", dy);
  check_ndim(kLinear, "grad_output", dy, 2);
  check_ndim(kLinear, "input", x, 2);
  check_matrix(kLinear, "input", x, dy.dtype, dy.shape[0], x.shape[1]);
  check(x.shape[1] > 0, kLinear, ": input has no columns");  // otherwise no block would sum dY
  const DType sums = dy.dtype == DType::f64 ? DType::f64 : DType::f32;
  check_matrix(kLinear, "grad_weight", dw, sums, dy.shape[1], x.shape[1]);
  check_contiguous(kLinear, "grad_weight", dw);
  if (db) {
    check_vector(kLinear, "grad_bias", *db, sums, dy.shape[1]);
    check_contiguous(kLinear, "grad_bias", *db);
  }
  const CudaCall call(kLinear, {&dy, &x, &dw, pointer(db), pointer(workspace)});
  return with_workspace(kLinear, pointer(workspace), [&](Workspace& memory) {
    linear_add_gradients(dy, x, dw, pointer(db), read_float32(kLinear, float32), memory, call.stream());
  });
}

}  // namespace

void register_linear(pybind11::module_& m) {
  m.def("linear_forward", &checked_linear_forward);
  m.def("linear_backward", &checked_linear_backward);
  m.def("linear_finish", &checked_linear_finish);
  m.def("linear_gradient", &checked_linear_gradient);
  m.def("linear_add_gradients", &checked_linear_add_gradients);
}

}  // namespace fastnn::cuda
