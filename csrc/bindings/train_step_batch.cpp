#include "bindings/train_step_batch.h"

#include <cstring>
#include <stdexcept>

#include "bindings/arena.h"
#include "bindings/class_indices.h"
#include "bindings/optimizer_group.h"
#include "core/check.h"
#include "dispatch/cpu_dispatch.h"

namespace py = pybind11;

namespace fastnn {

namespace {

// The positions of the fields of LossOptions in step/plan.py.
enum Option : Py_ssize_t {
  kLoss,
  kReduction,
  kIgnoreIndex,
  kLabelSmoothing,
  kZLoss,
  kThreshold,
  kWeight,
  kPosWeight,
  kOptions
};

struct LossName {
  const char* name;  // of torch's function
  TrainStepLoss kind;
  bool only_indices = false;
};

constexpr LossName kLosses[] = {
    {"cross_entropy", TrainStepLoss::cross_entropy},
    {"mse_loss", TrainStepLoss::squared_error},
    {"nll_loss", TrainStepLoss::cross_entropy, true},  // of log_softmax
    {"l1_loss", TrainStepLoss::absolute_error},
    {"smooth_l1_loss", TrainStepLoss::smooth_l1},
    {"huber_loss", TrainStepLoss::huber},
    {"binary_cross_entropy_with_logits", TrainStepLoss::binary_cross_entropy},
};

const LossName& loss_of(PyObject* object) {
  const char* const name = PyUnicode_AsUTF8(object);
  if (!name) throw py::error_already_set();
  for (const LossName& loss : kLosses)
    if (std::strcmp(name, loss.name) == 0) return loss;
  throw std::runtime_error(concat(kTrainStep, ": no loss ", name));
}

// The most values of a vector of any instruction set, in the smallest dtype of a step.
constexpr int64_t kLongestVector = 64 / sizeof(float);

// With a threshold near the limits of the dtype's range, products and quotients would leave it unlike
// torch's.
double read_threshold(PyObject* object, const TrainStepArgs& args) {
  const double threshold = number(object), most = args.dtype == DType::f32 ? 1e30 : 1e300;
  refuse_if(threshold != 0 && !(threshold >= 1 / most && threshold <= most),
            "beta or delta of the loss is nearly 0 or infinite");
  return threshold;
}

TensorView read_weight(PyObject* object, const TrainStepArgs& args) {
  const TensorView weight = read_plain(object);
  check_not_negated(object);
  refuse_if(weight.dtype != args.dtype, "a weight of the loss has another dtype than the model");
  refuse_if(requires_grad(object), "a weight of the loss requires grad");
  return weight;
}

}  // namespace

PyObject* TrainStepBatches::option(Py_ssize_t place) const { return PyTuple_GET_ITEM(options_.ptr(), place); }

void TrainStepBatches::read_input(bool flatten, TrainStepArgs& args) const {
  TensorView x = read_plain(input_.ptr());
  check_not_negated(input_.ptr());
  refuse_if(requires_grad(input_.ptr()), "the input requires grad");
  if (flatten && x.ndim > 2) {
    refuse_if(!x.is_contiguous(), "an input to be flattened is not contiguous");
    x = contiguous_matrix(x.data, x.dtype, x.shape[0], x.shape[0] ? x.numel() / x.shape[0] : 0);
  }
  refuse_if(x.ndim != 2, "the input is not a matrix");
  refuse_if(x.shape[0] == 0, "the batch is empty");
  refuse_if((rows_ || x.dtype == DType::u8) && x.shape[1] > 1 && x.strides[1] != 1,
            "the rows of the images are not contiguous");
  args.input = x;
  args.batch = rows_ ? size_ : x.shape[0];
  args.rows = rows_;
}

void TrainStepBatches::read_target(const TensorView& last_weight, TrainStepArgs& args) {
  args.dtype = last_weight.dtype;
  refuse_if(args.dtype != DType::f32 && args.dtype != DType::f64,
            "the parameters are neither float32 nor float64");
  check_dtype(kTrainStep, "loss", losses_, args.dtype);
  check(losses_.numel() == steps_ && losses_.is_contiguous(), kTrainStep, ": loss has shape ",
        shape_string(losses_));
  check(PyTuple_GET_SIZE(options_.ptr()) == kOptions, kTrainStep, ": expected ", +kOptions,
        " options of the loss");
  const int64_t classes = last_weight.ndim == 2 ? last_weight.shape[0] : 0;
  refuse_if(classes == 0, "the last layer has no outputs");
  const TensorView output = contiguous_matrix(nullptr, args.dtype, args.input.shape[0], classes);
  try {
    target_view_ = read_plain(target_.ptr());
  } catch (const NotCovered& error) {
    throw NotCovered(concat("the target: ", error.what()));
  }
  check_not_negated(target_.ptr());

  const LossName& loss = loss_of(option(kLoss));
  args.loss_kind = loss.kind;
  const auto reduction = static_cast<Reduction>(PyLong_AsLong(option(kReduction)));
  refuse_if(reduction == Reduction::none, "the loss is not reduced to one number by mean or sum");
  args.mean = reduction == Reduction::mean;
  if (args.loss_kind != TrainStepLoss::cross_entropy) return read_values(output, args);

  CrossEntropyArgs& rows = args.cross_entropy;
  rows.reduction = reduction;
  rows.dtype = args.dtype;
  rows.outer = args.batch;
  rows.classes = rows.outer_stride = classes;
  rows.inner = 1;
  rows.ignore_index = PyLong_AsLongLong(option(kIgnoreIndex));
  rows.label_smoothing = number(option(kLabelSmoothing));
  rows.z_loss = number(option(kZLoss));
  if (loss.only_indices || !is_floating(target_view_.dtype))
    read_classes(output, args);
  else
    read_values(output, args);
  if (option(kWeight) == Py_None) return;
  const TensorView weight = read_weight(option(kWeight), args);
  refuse_if(weight.ndim != 1 || weight.shape[0] != classes, "the class weights do not fit the classes");
  refuse_if(!weight.is_contiguous(), "the class weights are not contiguous");
  rows.weight = weight.data;
}

// The target is an index for each row of the output.
void TrainStepBatches::read_classes(const TensorView& output, TrainStepArgs& args) {
  refuse_if(target_view_.dtype != DType::i64 && target_view_.dtype != DType::u8,
            "the target holds no class indices of int64 or uint8");
  if (target_view_.ndim != 1 || target_view_.shape[0] != output.shape[0])
    throw NotCovered(concat("the target has shape ", shape_string(target_view_),
                            ", class indices of this batch (", output.shape[0], ",)"));
  args.cross_entropy.target_dtype = target_view_.dtype;
  lay_out(args.batch, 0);
}

// The target has a number for each output value: class probabilities, or the target of an elementwise loss.
void TrainStepBatches::read_values(const TensorView& output, TrainStepArgs& args) {
  refuse_if(requires_grad(target_.ptr()), "the target requires grad");
  if (target_view_.dtype != args.dtype)
    throw NotCovered(
        concat("the target is ", dtype_name(target_view_.dtype), ", the model ", dtype_name(args.dtype)));
  bool same = target_view_.ndim == output.ndim;
  for (int d = 0; d < output.ndim; ++d) same = same && target_view_.shape[d] == output.shape[d];
  if (!same) refuse_shape(output);
  read_rows_of_target();
  has_values_ = true;
  const int64_t classes = output.shape[1];
  const bool weighted = args.loss_kind == TrainStepLoss::binary_cross_entropy;
  lay_out(rows_ ? args.batch * classes : 0, weighted ? classes + kLongestVector : 0);
  switch (args.loss_kind) {
    case TrainStepLoss::cross_entropy:
      refuse_if(args.cross_entropy.ignore_index >= 0, "ignore_index with class probabilities");
      args.cross_entropy.target_dtype = args.dtype;
      break;
    case TrainStepLoss::smooth_l1:
      args.threshold = read_threshold(option(kThreshold), args);
      if (args.threshold == 0) args.loss_kind = TrainStepLoss::absolute_error;
      break;
    case TrainStepLoss::huber:
      args.threshold = read_threshold(option(kThreshold), args);
      break;
    case TrainStepLoss::binary_cross_entropy:
      if (read_repeated(option(kWeight), classes, args, weights_[0])) args.element_weight = own_weights_[0];
      if (read_repeated(option(kPosWeight), classes, args, weights_[1]))
        args.positive_weight = own_weights_[1];
      break;
    default:
      break;
  }
}

void TrainStepBatches::refuse_shape(const TensorView& output) const {
  throw NotCovered(
      concat("the target has shape ", shape_string(target_view_), ", the output ", shape_string(output)));
}

// A weight for each class, with a stride of 0 if there is one for all.
bool TrainStepBatches::read_repeated(PyObject* object, int64_t classes, const TrainStepArgs& args,
                                     TensorView& weight) {
  if (object == Py_None) return false;
  weight = read_weight(object, args);
  const bool one = weight.ndim <= 1 && weight.numel() == 1;
  refuse_if(!one && (weight.ndim != 1 || weight.shape[0] != classes),
            "a weight of the loss is neither a number nor one for each class");
  if (one) weight.strides[0] = 0;
  weight.shape[0] = classes;
  return true;
}

// Fills a weight of TrainStepArgs.
void TrainStepBatches::repeat(const TensorView& weight, void* to) {
  const auto size = static_cast<size_t>(dtype_size(weight.dtype));
  const size_t classes = static_cast<size_t>(weight.shape[0]), stride = weight.strides[0] * size;
  char* const own = static_cast<char*>(to);
  for (size_t i = 0; i < classes + kLongestVector; ++i)
    std::memcpy(own + i * size, i < classes ? weight.as<char>() + i * stride : own + (i - classes) * size,
                size);
}

// Values are read row by row, each row contiguously; class indices, which are copied one by one, may have any
// stride. The rows of a data set may be apart: a batch of them is copied.
void TrainStepBatches::read_rows_of_target() {
  if (target_view_.is_contiguous()) return;
  if (rows_) {
    refuse_if(target_view_.ndim == 2 && target_view_.shape[1] != 1 && target_view_.strides[1] != 1,
              "the rows of the targets are not contiguous");
    return;
  }
  static Interned contiguous("contiguous");
  target_ = owned(PyObject_CallMethodNoArgs(target_.ptr(), contiguous));
  target_view_ = read_plain(target_.ptr());
}

void TrainStepBatches::lay_out(int64_t target_values, int64_t weight_values) {
  Arena arena;
  const int64_t size = dtype_size(target_view_.dtype);
  const size_t rows = arena.take(rows_ ? size_ : 0, sizeof(int64_t));
  const size_t target = arena.take(target_values, size);
  const size_t weights[2] = {arena.take(weight_values, size), arena.take(weight_values, size)};
  memory_.grow(arena.size());
  char* const memory = static_cast<char*>(memory_.data());
  own_rows_ = reinterpret_cast<int64_t*>(memory + rows);
  own_target_ = memory + target;
  for (int i = 0; i < 2; ++i) own_weights_[i] = memory + weights[i];
}

bool TrainStepBatches::take(int64_t step, TrainStepArgs& args, CrossEntropyTotals& totals) const {
  args.loss = losses_.as<char>() + step * dtype_size(args.dtype);
  if (rows_ && !take_rows(step, args)) return false;
  if (has_values_) {
    args.target = rows_ ? own_target_ : target_view_.data;
    args.gathered_target = rows_ ? own_target_ : nullptr;
    args.targets = target_view_.data;
    args.targets_stride = target_view_.strides[0] * dtype_size(target_view_.dtype);
  } else if (target_view_.dtype == DType::u8) {
    copy_classes<uint8_t>(args);
  } else {
    copy_classes<int64_t>(args);
  }
  for (int i = 0; i < 2; ++i)
    if (weights_[i].data) repeat(weights_[i], own_weights_[i]);
  if (args.loss_kind != TrainStepLoss::cross_entropy) return true;
  args.cross_entropy.target = has_values_ ? args.target : own_target_;
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
