#include "mlp.h"

#include "layout.h"
#include "ops/adam/adam_scales.h"
#include "ops/linear/linear.h"
#include "views.h"

using namespace fastnn;
using namespace fastnn::FASTNN_ISA;

Mlp::Mlp(const int32_t* sizes, int32_t depth, MlpLoss loss) : depth_(depth), loss_(loss) {
  for (int32_t i = 0; i <= depth; ++i) sizes_[i] = sizes[i];
  Layout layout;
  int64_t at[2 * kMaxDepth];
  for (int32_t l = 0; l < depth; ++l) {
    at[2 * l] = layout.take(int64_t{sizes[l]} * sizes[l + 1], sizeof(float));
    at[2 * l + 1] = layout.take(sizes[l + 1], sizeof(float));
  }
  layout.grow_zeroed(parameters_);
  const auto address = [&](int64_t offset) {
    return reinterpret_cast<float*>(static_cast<char*>(parameters_.data()) + offset);
  };
  for (int32_t l = 0; l < depth; ++l) {
    TrainStepLayer& layer = layers_[l] = {};
    layer.weight = matrix(address(at[2 * l]), sizes[l + 1], sizes[l]);
    layer.bias = vector(address(at[2 * l + 1]), sizes[l + 1]);
    layer.activation = l + 1 < depth ? Activation::relu : Activation::none;
  }
}

// Calls visit(parameter, its update).
template <class Visit>
void Mlp::each_parameter(const Visit& visit) {
  for (int32_t l = 0; l < depth_; ++l) {
    visit(layers_[l].weight, layers_[l].weight_update);
    visit(layers_[l].bias, layers_[l].bias_update);
  }
}

namespace {

AdamTensor with_state(const OptimizerTensor& tensor, const AdamOptions&) {
  AdamTensor of_adam = {};
  static_cast<OptimizerTensor&>(of_adam) = tensor;
  return of_adam;
}

SgdTensor with_state(const OptimizerTensor& tensor, const SgdOptions&) {
  SgdTensor of_sgd = {};
  static_cast<OptimizerTensor&>(of_sgd) = tensor;
  of_sgd.first = true;
  return of_sgd;
}

}  // namespace

// Both optimizers keep at most two numbers a parameter.
template <class Options>
void Mlp::begin(Options& own, const Options& options) {
  own = options;
  steps_taken_ = 0;
  Layout layout;
  int64_t at[2 * 2 * kMaxDepth];
  int count = 0;
  each_parameter([&](const TensorView& parameter, ParameterUpdate&) {
    for (int i = 0; i < 2; ++i) at[count++] = layout.take(parameter.numel(), sizeof(float));
  });
  layout.grow_zeroed(state_);
  count = 0;
  each_parameter([&](const TensorView& parameter, ParameterUpdate& update) {
    OptimizerTensor tensor = {};
    tensor.param = parameter.data;
    for (int i = 0; i < 2; ++i) tensor.state[i] = static_cast<char*>(state_.data()) + at[count++];
    tensor.numel = parameter.numel();
    update = ParameterUpdate(with_state(tensor, own), own);
  });
}

void Mlp::use(const AdamOptions& options) { begin(adam_, options); }
void Mlp::use(const SgdOptions& options) { begin(sgd_, options); }

void Mlp::set_lr(double lr) { adam_.lr = sgd_.lr = lr; }

// Makes the optimizer's numbers those of the next step.
void Mlp::advance() {
  ++steps_taken_;
  const AdamScales scales = adam_scales(adam_, static_cast<double>(steps_taken_));
  each_parameter([&](const TensorView&, ParameterUpdate& update) {
    switch (update.by) {
      case ParameterUpdate::By::adam:
        update.adam.tensor.step_size = scales.step_size;
        update.adam.tensor.denom_scale = scales.denom_scale;
        break;
      case ParameterUpdate::By::sgd:
        update.sgd.tensor.first = steps_taken_ == 1;
        break;
      default:
        break;
    }
  });
}

void Mlp::lay_out(int64_t batch) {
  Layout layout;
  const auto matrix_at = [&](int64_t columns) { return layout.take(batch * columns, sizeof(float)); };
  int64_t widest = 0;
  int64_t outputs[kMaxDepth], bias_gradients[kMaxDepth];
  const int64_t rows = layout.take(batch, sizeof(int64_t)), labels = layout.take(batch, sizeof(int64_t));
  const int64_t input = matrix_at(sizes_[0]), target = matrix_at(sizes_[depth_]);
  for (int32_t l = 0; l < depth_; ++l) {
    if (sizes_[l + 1] > widest) widest = sizes_[l + 1];
    outputs[l] = matrix_at(sizes_[l + 1]);
    bias_gradients[l] = layout.take(sizes_[l + 1], sizeof(float));
  }
  const int64_t gradients[2] = {matrix_at(widest),
                                matrix_at(widest)};  // a layer's, and that of the one below
  layout.grow(buffers_);
  const auto floats = [&](int64_t offset) {
    return reinterpret_cast<float*>(static_cast<char*>(buffers_.data()) + offset);
  };
  rows_ = reinterpret_cast<int64_t*>(floats(rows));
  labels_ = reinterpret_cast<int64_t*>(floats(labels));
  input_ = matrix(floats(input), batch, sizes_[0]);
  gathered_target_ = floats(target);
  for (int32_t l = 0; l < depth_; ++l) {
    TrainStepLayer& layer = layers_[l];
    layer.output = matrix(floats(outputs[l]), batch, sizes_[l + 1]);
    layer.gradient = matrix(floats(gradients[l % 2]), batch, sizes_[l + 1]);
    layer.bias_gradient = floats(bias_gradients[l]);
    visit_update(layer.bias_update, [&](auto& tensor, const auto&) { tensor.grad = layer.bias_gradient; });
  }
}

// The batches of a call on their way through the steps.
struct Mlp::Batches {
  Mlp& mlp;
  const MlpRows& data;
  const void* target;
  const int32_t* rows;  // of the next batch
  float* losses;        // of the next step
  int64_t left = 0;     // steps
  TrainStepArgs args = {};
  CrossEntropyTotals totals = {};

  bool take() {
    if (left == 0) return false;
    --left;
    mlp.advance();
    const int32_t* const labels = static_cast<const int32_t*>(target);
    totals = {-1, 0, 0};
    for (int64_t i = 0; i < args.batch; ++i) {
      mlp.rows_[i] = rows[i];
      if (mlp.loss_ != kCrossEntropy) continue;
      mlp.labels_[i] = labels[rows[i]];
      if (mlp.labels_[i] != kIgnoredLabel) ++totals.rows;
    }
    totals.weight = static_cast<double>(totals.rows);
    args.loss = losses++;
    rows += args.batch;
    return true;
  }

  static bool next(void* context) { return static_cast<Batches*>(context)->take(); }
};

void Mlp::steps_of(Batches& batches, int64_t batch, int64_t steps) {
  lay_out(batch);
  TrainStepArgs& args = batches.args;
  args = {};
  args.dtype = DType::f32;
  args.batch = batch;
  args.input = matrix(static_cast<const float*>(batches.data.data), batches.data.rows, sizes_[0]);
  if (batches.data.bytes) args.input.dtype = DType::u8;
  args.rows = rows_;
  args.images = input_;
  args.byte_scale = batches.data.scale;
  args.byte_shift = batches.data.shift;
  args.layers = layers_;
  args.depth = depth_;
  args.mean = true;
  if (loss_ == kCrossEntropy) {
    args.loss_kind = TrainStepLoss::cross_entropy;
    args.cross_entropy = cross_entropy_of(batch, outputs(), labels_, Reduction::mean);
    args.cross_entropy.totals = &batches.totals;
  } else {
    args.loss_kind = TrainStepLoss::squared_error;
    args.target = args.gathered_target = gathered_target_;
    args.targets = batches.target;
    args.targets_stride = int64_t{outputs()} * static_cast<int64_t>(sizeof(float));
  }
  batches.left = steps;
  batches.take();
  train_step_kernels().run(args, Batches::next, &batches);
}

void Mlp::train(const MlpRows& data, const void* target, const int32_t* rows, int32_t count, int32_t batch,
                float* losses) {
  Batches batches{*this, data, target, rows, losses};
  if (count >= batch) steps_of(batches, batch, count / batch);
  if (count % batch) steps_of(batches, count % batch, 1);
}

const float* Mlp::forward(const MlpRows& data, int64_t begin, int64_t count) {
  lay_out(count);
  TensorView x = input_;
  const int64_t values = count * inputs(), first = begin * inputs();
  if (data.bytes) {
    const uint8_t* const from = static_cast<const uint8_t*>(data.data) + first;
    float* const to = x.as<float>();
    for (int64_t i = 0; i < values; ++i) to[i] = static_cast<float>(from[i]) * data.scale + data.shift;
  } else {
    x = matrix(static_cast<const float*>(data.data) + first, count, inputs());
  }
  for (int32_t l = 0; l < depth_; ++l) {
    const TrainStepLayer& layer = layers_[l];
    linear_kernels().forward(x, layer.weight, &layer.bias, layer.activation, layer.output, nullptr);
    x = layer.output;
  }
  return x.as<float>();
}
