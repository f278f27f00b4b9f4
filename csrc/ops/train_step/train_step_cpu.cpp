#include "ops/train_step/train_step.h"

#include "core/flush_subnormals.h"
#include "core/parallel.h"
#include "ops/linear/linear.h"
#include "ops/train_step/passes.h"
#include "ops/train_step/updates.h"

namespace fastnn::FASTNN_ISA {

namespace {

// Multiply-adds of a step below which a second thread costs more than it saves: a step has a dozen barriers.
constexpr int64_t kStepGrain = int64_t{1} << 20;

template <class T>
Operand<T> operand(const TensorView& t) {
  return {t.as<const T>(), t.strides[0], t.strides[1]};
}

template <class T>
class Step {
 public:
  explicit Step(const TrainStepArgs& args)
      : args_(args),
        copied_(args.input.dtype == DType::u8 || args.rows),
        x_(copied_ ? args.images : args.input),
        m_(args.batch),
        last_(args.layers[args.depth - 1]) {}

  void run() const {
    const FlushSubnormals flush;
    if (copied_) make_images<T>(args_);
    forward();
    loss();
    backward();
    if (stored()) clip_and_update();
  }

 private:
  const TensorView& input_of(int64_t l) const { return l ? args_.layers[l - 1].output : x_; }

  void forward() const {
    for (int64_t l = 0; l < args_.depth; ++l) {
      const TrainStepLayer& layer = args_.layers[l];
      linear_kernels().forward(input_of(l), layer.weight, layer.bias.data ? &layer.bias : nullptr,
                               layer.activation, layer.output,
                               from_preactivation(layer.activation) ? &layer.preactivation : nullptr);
    }
  }

  void loss() const {
    if (args_.gathered_target) make_target<T>(args_, last_.output.shape[1]);
    if (args_.loss_kind == TrainStepLoss::cross_entropy) {
      CrossEntropyArgs args = args_.cross_entropy;
      args.logits = last_.output.data;
      args.gradient = last_.gradient.data;
      args.loss = args_.loss;
      cross_entropy_kernels().forward(args);
    } else {
      elementwise_loss<T>(args_, last_.output, last_.gradient);
    }
    through_activation<T>(last_);
  }

  // Whether all gradients are stored before the first update.
  bool stored() const { return args_.keep_grad || args_.clip; }

  // For each layer, first the gradient of its input: the update changes the weights that it needs.
  void backward() const {
    for (int64_t l = args_.depth; l-- > 0;) {
      const TrainStepLayer& layer = args_.layers[l];
      if (l > 0) {
        const TrainStepLayer& below = args_.layers[l - 1];
        linear_kernels().backward({layer.gradient, nullptr, Activation::none, nullptr, &layer.weight,
                                   &saved_of(below), below.activation, &below.gradient, nullptr, nullptr});
      }
      if (layer.bias.data) {
        column_sums(layer.gradient.as<const T>(), m_, layer.bias.shape[0],
                    static_cast<T*>(layer.bias_gradient));
        if (!stored()) update_parameter(layer.bias_update, 1);
      }
      const Operand<T> g = operand<T>(layer.gradient), x = operand<T>(input_of(l));
      if (stored())
        store_weight_gradient(layer, g, x, m_);
      else
        update_weights(layer, g, x, m_);
    }
  }

  // Calls visit(update, gradient, number of values) for every parameter.
  template <class Visit>
  void each_parameter(const Visit& visit) const {
    for (int64_t l = 0; l < args_.depth; ++l) {
      const TrainStepLayer& layer = args_.layers[l];
      visit(layer.weight_update, static_cast<T*>(layer.weight_gradient), layer.weight.numel());
      if (layer.bias.data) visit(layer.bias_update, static_cast<T*>(layer.bias_gradient), layer.bias.numel());
    }
  }

  void clip_and_update() const {
    double scale = 1;
    if (args_.clip) {
      double squares = 0;
      each_parameter([&](const ParameterUpdate&, const T* gradient, int64_t count) {
        squares += sum_of_squares(gradient, count);
      });
      scale = args_.max_norm / (__builtin_sqrt(squares) + 1e-6);
      if (scale > 1) scale = 1;
    }
    each_parameter([&](const ParameterUpdate& update, T* gradient, int64_t count) {
      if (args_.keep_grad && args_.clip) scale_values(gradient, count, static_cast<T>(scale));
      update_parameter(update, args_.keep_grad ? 1 : scale);
    });
  }

  const TrainStepArgs& args_;
  const bool copied_;
  const TensorView x_;
  const int64_t m_;
  const TrainStepLayer& last_;
};

// Multiply-adds of all products: two per layer, and a third if the input has a gradient.
int64_t multiply_adds(const TrainStepArgs& args) {
  int64_t sum = 0;
  for (int64_t l = 0; l < args.depth; ++l) sum += (l ? 3 : 2) * args.layers[l].weight.numel();
  return sum * args.batch;
}

void run(const TrainStepArgs& args, bool (*next)(void*), void* context) {
  const int64_t wanted = multiply_adds(args) / kStepGrain;
  const int64_t threads = wanted < 2 ? 1 : min(wanted, max_threads());
  const auto step = [&args] {
    if (args.dtype == DType::f64)
      Step<double>(args).run();
    else
      Step<float>(args).run();
  };
  if (next)
    run_pieces(threads, step, [&] { return next(context); });
  else
    run_as_team(threads, step);
}

}  // namespace

TrainStepKernels train_step_kernels() { return {run}; }

}  // namespace fastnn::FASTNN_ISA
