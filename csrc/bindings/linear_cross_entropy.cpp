#include "ops/linear_cross_entropy/linear_cross_entropy.h"

#include <algorithm>
#include <optional>

#include "bindings/class_indices.h"
#include "bindings/cross_entropy_args.h"
#include "bindings/memory_ranges.h"
#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/huge_pages.h"
#include "dispatch/cpu_dispatch.h"

namespace fastnn {

namespace {

using Optional = std::optional<TensorView>;

constexpr const char* kOp = "linear_cross_entropy";

// Gradients are kept in the type of the sums.
void check_gradient(const char* name, const Optional& t, const TensorView& like) {
  if (!t) return;
  check_dtype(kOp, name, *t, like.dtype == DType::f64 ? DType::f64 : DType::f32);
  check_same_shape(kOp, name, *t, like);
  check_contiguous(kOp, name, *t);
}

void run(const TensorView& x, const TensorView& weight, const Optional& bias, const TensorView& target,
         const Optional& class_weight, const TensorView& loss, const Optional& dy, const Optional& dx,
         const Optional& dw, const Optional& db, int64_t ignore_index, int reduction, double label_smoothing,
         double z_loss, int64_t chunk_rows) {
  check_floating(kOp, "input", x);
  check_ndim(kOp, "input", x, 2);
  check_ndim(kOp, "linear_weight", weight, 2);
  check_dtype(kOp, "linear_weight", weight, x.dtype);
  check(x.shape[1] == weight.shape[1], kOp, ": input has K=", x.shape[1], ", linear_weight expects ",
        weight.shape[1]);
  check(x.numel() > 0 && weight.numel() > 0, kOp, ": input of shape ", shape_string(x),
        " or linear_weight of shape ", shape_string(weight), " has no elements");
  check(chunk_rows > 0, kOp, ": chunk_rows must be positive, got ", chunk_rows);
  const int64_t rows = x.shape[0], classes = weight.shape[0];
  if (bias) check_vector(kOp, "linear_bias", *bias, x.dtype, classes);

  LinearCrossEntropyArgs args = {x,
                                 weight,
                                 pointer(bias),
                                 {},
                                 dy ? dy->data : nullptr,
                                 pointer(dx),
                                 pointer(dw),
                                 pointer(db),
                                 std::min(chunk_rows, rows)};
  check(target.dtype == DType::i64 || target.dtype == DType::u8, kOp, ": target has dtype ",
        dtype_name(target.dtype), ", expected int64 or uint8");
  check_vector(kOp, "target", target, target.dtype, rows);
  check_contiguous(kOp, "target", target);
  args.loss.target = target.data;
  args.loss.target_dtype = target.dtype;
  if (class_weight) {
    check_vector(kOp, "weight", *class_weight, x.dtype, classes);
    check_contiguous(kOp, "weight", *class_weight);
    args.loss.weight = class_weight->data;
  }
  args.loss.ignore_index = ignore_index;
  args.loss.reduction = cross_entropy_args::read_reduction(kOp, reduction);
  args.loss.label_smoothing = label_smoothing;
  args.loss.z_loss = z_loss;
  check_dtype(kOp, "loss", loss, x.dtype);
  if (args.loss.reduction == Reduction::none)
    check_vector(kOp, "loss", loss, x.dtype, rows);
  else
    check_ndim(kOp, "loss", loss, 0);
  check_contiguous(kOp, "loss", loss);
  args.loss.loss = loss.data;
  if (dy) {
    check_vector(kOp, "grad_output", *dy, x.dtype, rows);
    check_contiguous(kOp, "grad_output", *dy);
  }
  check_gradient("grad_input", dx, x);
  check_gradient("grad_linear_weight", dw, weight);
  check(!db || bias, kOp, ": grad_linear_bias needs linear_bias");
  if (db) check_gradient("grad_linear_bias", db, *bias);

  check_apart(kOp, {&loss, pointer(dx), pointer(dw), pointer(db)},
              {&x, &weight, pointer(bias), &target, pointer(class_weight), pointer(dy)});
  prefer_huge_pages({pointer(dx), pointer(dw)});
  int64_t bad_row;
  {
    const KernelCall call(rows * classes * x.shape[1] / 16);
    bad_row = cpu_kernels().linear_cross_entropy.run(args);
  }
  if (bad_row >= 0) throw target_out_of_bounds(args.loss, bad_row);
}

}  // namespace

void register_linear_cross_entropy(pybind11::module_& m) { m.def("linear_cross_entropy", &run); }

}  // namespace fastnn
