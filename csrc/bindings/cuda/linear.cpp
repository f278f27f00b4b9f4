#include "ops/linear/linear_cuda.h"

#include "bindings/activation_caster.h"
#include "bindings/cuda/cuda_call.h"
#include "bindings/cuda/product_call.h"
#include "bindings/cuda/registration.h"
#include "bindings/linear_args.h"

namespace fastnn::cuda {

namespace {

constexpr const char* kOp = "linear";
using Optional = std::optional<TensorView>;

int64_t forward(const TensorView& x, const TensorView& weight, const Optional& bias, Activation activation,
                const TensorView& y, const Optional& z, int float32, const Optional& workspace) {
  check_linear_forward(x, weight, pointer(bias), y, pointer(z));
  const CudaCall call(kOp, {&x, &weight, pointer(bias), &y, pointer(z), pointer(workspace)});
  const LinearForward args = {x, weight, pointer(bias), activation, y, pointer(z)};
  return with_workspace(kOp, pointer(workspace), [&](Workspace& memory) {
    linear_forward(args, read_float32(kOp, float32), memory, call.stream());
  });
}

// The gradients of a layer, and of the activation of the layer below where that gave x.
int64_t backward(const TensorView& dy, const Optional& saved, Activation activation, const Optional& x,
                 const Optional& weight, const Optional& below_saved, Activation below_activation,
                 const Optional& dx, const Optional& dw, const Optional& db, int float32,
                 const Optional& workspace) {
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
  const CudaCall call(kOp, {&dy, args.saved, args.x, args.weight, args.below_saved, args.dx, args.dw, args.db,
                            pointer(workspace)});
  return with_workspace(kOp, pointer(workspace), [&](Workspace& memory) {
    linear_backward(args, read_float32(kOp, float32), memory, call.stream());
  });
}

void finish(const TensorView& y, const Optional& bias, Activation activation, const Optional& z) {
  check_floating(kOp, "output", y);
  check_ndim(kOp, "output", y, 2);
  check_contiguous(kOp, "output", y);
  if (bias) check_vector(kOp, "bias", *bias, y.dtype, y.shape[1]);
  if (z) {
    check_matrix(kOp, "preactivation", *z, y.dtype, y.shape[0], y.shape[1]);
    check_contiguous(kOp, "preactivation", *z);
  }
  const CudaCall call(kOp, {&y, pointer(bias), pointer(z)});
  linear_finish(y, pointer(bias), activation, pointer(z), call.stream());
}

int64_t gradient(const TensorView& dy, const Optional& saved, Activation activation, const Optional& g,
                 const Optional& db, const Optional& workspace) {
  check_linear_saved(dy, pointer(saved), activation);
  if (g) {
    check_matrix(kOp, "the gradient before the activation", *g, dy.dtype, dy.shape[0], dy.shape[1]);
    check_contiguous(kOp, "the gradient before the activation", *g);
  }
  check_linear_bias_gradient(dy, pointer(db));
  const CudaCall call(kOp, {&dy, pointer(saved), pointer(g), pointer(db), pointer(workspace)});
  return with_workspace(kOp, pointer(workspace), [&](Workspace& memory) {
    linear_gradient(dy, pointer(saved), activation, g ? g->data : nullptr, db ? db->data : nullptr, memory,
                    call.stream());
  });
}

int64_t add_gradients(const TensorView& dy, const TensorView& x, const TensorView& dw, const Optional& db,
                      int float32, const Optional& workspace) {
  check_floating(kOp, "grad_output", dy);
  check_ndim(kOp, "grad_output", dy, 2);
  check_ndim(kOp, "input", x, 2);
  check_matrix(kOp, "input", x, dy.dtype, dy.shape[0], x.shape[1]);
  check(x.shape[1] > 0, kOp, ": input has no columns");  // no block would sum dY
  const DType sums = dy.dtype == DType::f64 ? DType::f64 : DType::f32;
  check_matrix(kOp, "grad_weight", dw, sums, dy.shape[1], x.shape[1]);
  check_contiguous(kOp, "grad_weight", dw);
  if (db) {
    check_vector(kOp, "grad_bias", *db, sums, dy.shape[1]);
    check_contiguous(kOp, "grad_bias", *db);
  }
  const CudaCall call(kOp, {&dy, &x, &dw, pointer(db), pointer(workspace)});
  return with_workspace(kOp, pointer(workspace), [&](Workspace& memory) {
    linear_add_gradients(dy, x, dw, pointer(db), read_float32(kOp, float32), memory, call.stream());
  });
}

}  // namespace

void register_linear(pybind11::module_& m) {
  m.def("linear_forward", &forward);
  m.def("linear_backward", &backward);
  m.def("linear_finish", &finish);
  m.def("linear_gradient", &gradient);
  m.def("linear_add_gradients", &add_gradients);
}

}  // namespace fastnn::cuda
