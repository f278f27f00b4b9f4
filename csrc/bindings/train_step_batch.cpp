#include "bindings/train_step_batch.h"

#include <string>

#include "bindings/arena.h"
#include "bindings/class_indices.h"
#include "bindings/optimizer_group.h"
#include "core/check.h"
#include "core/cpu_dispatch.h"

namespace py = pybind11;

namespace fastnn {

namespace {

constexpr const char* kOp = "TrainStep";

}  // namespace

void TrainStepBatches::read_input(bool flatten, TrainStepArgs& args) const {
  TensorView x = read_plain(input_.ptr());
  check_not_negated(input_.ptr());
  refuse_if(requires_grad(input_.ptr()), "the input requires grad");
  if (flatten && x.ndim > 2) {
    refuse_if(!x.is_contiguous(), "an input to be flattened is not contiguous");
    x = contiguous_matrix(x.data, x.dtype, x.shape[0], x.shape[0] ? x.numel() / x.shape[0] : 0);
  }
  refuse_if(x.ndim != 2, "the input is no matrix");
  refuse_if(x.shape[0] == 0, "the batch is empty");
  refuse_if((rows_ || x.dtype == DType::u8) && x.shape[1] > 1 && x.strides[1] != 1,
            "the rows of the images are not contiguous");
  args.input = x;
  args.batch = rows_ ? size_ : x.shape[0];
  args.rows = rows_;
}

void TrainStepBatches::read_target(const TensorView& last_weight, bool squeeze, TrainStepArgs& args) {
  args.dtype = last_weight.dtype;
  refuse_if(args.dtype != DType::f32 && args.dtype != DType::f64,
            "the parameters are neither float32 nor float64");
  check_dtype(kOp, "loss", losses_, args.dtype);
  check(losses_.numel() == steps_ && losses_.is_contiguous(), kOp, ": loss has shape ",
        shape_string(losses_));
  const int64_t entries = args.input.shape[0], classes = last_weight.ndim == 2 ? last_weight.shape[0] : 0;
  refuse_if(classes == 0, "the last layer has no outputs");
  const bool vector = squeeze && classes == 1;
  target_view_ = read_plain(target_.ptr());
  check_not_negated(target_.ptr());
  const auto class_weight = options_[0].cast<py::object>();
  const auto loss_kind = options_[1].cast<std::string>();
  CrossEntropyArgs& loss = args.cross_entropy;
  loss.reduction = static_cast<Reduction>(options_[2].cast<int>());
  refuse_if(loss.reduction == Reduction::none, "the loss is not reduced to one number");
  args.mean = loss.reduction == Reduction::mean;
  if (loss_kind == "mse_loss") {
    args.loss_kind = TrainStepLoss::mean_squared_error;
    refuse_if(requires_grad(target_.ptr()), "the target requires grad");
    read_rows_of_target();
    refuse_if(target_view_.dtype != args.dtype, "the target has another dtype than the model");
    refuse_if(target_view_.ndim != (vector ? 1 : 2) || target_view_.shape[0] != entries ||
                  (!vector && target_view_.shape[1] != classes),
              "the target has another shape than the output");
    if (rows_) lay_out(args.batch, classes);
    return;
  }
  args.loss_kind = TrainStepLoss::cross_entropy;
  refuse_if(vector, "the output has no classes");
  refuse_if(target_view_.dtype != DType::i64 && target_view_.dtype != DType::u8,
            "the target holds no class indices of int64 or uint8");
  refuse_if(target_view_.ndim != 1 || target_view_.shape[0] != entries,
            "the target has another batch size than the input");
  loss.dtype = args.dtype;
  loss.outer = args.batch;
  loss.classes = loss.outer_stride = classes;
  loss.inner = 1;
  loss.target_dtype = target_view_.dtype;
  loss.ignore_index = options_[3].cast<int64_t>();
  loss.label_smoothing = number(PyTuple_GET_ITEM(options_.ptr(), 4));
  loss.z_loss = number(PyTuple_GET_ITEM(options_.ptr(), 5));
  lay_out(args.batch, 1);
  if (class_weight.is_none()) return;
  const TensorView weight = read_plain(class_weight.ptr());
  refuse_if(weight.dtype != args.dtype || weight.ndim != 1 || weight.shape[0] != classes,
            "the class weights do not fit the classes");
  refuse_if(!weight.is_contiguous(), "the class weights are not contiguous");
  loss.weight = weight.data;
}

// The target of the mean squared error is read row by row, each row at once; class indices, which are
// copied one by one, may lie at any stride. A data set's rows may lie apart: a batch of them is copied.
void TrainStepBatches::read_rows_of_target() {
  if (target_view_.is_contiguous()) return;
  if (rows_) {
    refuse_if(target_view_.ndim == 2 && target_view_.shape[1] != 1 && target_view_.strides[1] != 1,
              "the rows of the targets are not contiguous");
    return;
  }
  static PyObject* const contiguous = interned("contiguous");
  target_ = owned(PyObject_CallMethodNoArgs(target_.ptr(), contiguous));
  target_view_ = read_plain(target_.ptr());
}

// Makes room for the rows of a batch and its target, of `width` values a row.
void TrainStepBatches::lay_out(int64_t batch, int64_t width) {
  Arena arena;
  const size_t rows = arena.take(rows_ ? size_ : 0, sizeof(int64_t));
  const size_t target = arena.take(batch * width, dtype_size(target_view_.dtype));
  memory_.grow(arena.size());
  char* const memory = static_cast<char*>(memory_.data());
  own_rows_ = reinterpret_cast<int64_t*>(memory + rows);
  own_target_ = memory + target;
}

bool TrainStepBatches::take(int64_t step, TrainStepArgs& args, CrossEntropyTotals& totals) const {
  args.loss = losses_.as<char>() + step * dtype_size(args.dtype);
  if (rows_ && !take_rows(step, args)) return false;
  if (args.loss_kind == TrainStepLoss::mean_squared_error) {
    args.target = rows_ ? own_target_ : target_view_.data;
    args.gathered_target = rows_ ? own_target_ : nullptr;
    args.targets = target_view_.data;
    args.targets_stride = target_view_.strides[0] * dtype_size(target_view_.dtype);
    return true;
  }
  if (target_view_.dtype == DType::u8)
    copy_classes<uint8_t>(args);
  else
    copy_classes<int64_t>(args);
  args.cross_entropy.target = own_target_;
  totals = cpu_kernels().cross_entropy.count(args.cross_entropy);
  args.cross_entropy.totals = &totals;
  if (totals.bad_row >= 0 && !rows_) throw target_out_of_bounds(args.cross_entropy, totals.bad_row);
  return totals.bad_row < 0;
}

bool TrainStepBatches::take_rows(int64_t step, TrainStepArgs& args) const {
  const int64_t* const named = rows_ + step * size_;
  bool in_range = true;
  for (int64_t i = 0; i < size_; ++i) {
    const int64_t row = named[i];
    own_rows_[i] = row;
    in_range &= row >= 0 && row < args.input.shape[0];
  }
  args.rows = own_rows_;
  return in_range;
}

template <class Index>
void TrainStepBatches::copy_classes(const TrainStepArgs& args) const {
  const Index* const from = target_view_.as<const Index>();
  Index* const to = static_cast<Index*>(own_target_);
  const int64_t stride = target_view_.strides[0];
  for (int64_t i = 0; i < args.batch; ++i) to[i] = from[(args.rows ? args.rows[i] : i) * stride];
}

}  // namespace fastnn
