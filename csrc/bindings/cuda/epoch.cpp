#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "bindings/cuda/bad_index.h"
#include "bindings/cuda/cuda_call.h"
#include "bindings/cuda/registration.h"
#include "ops/epoch/epoch_cuda.h"

namespace fastnn::cuda {

namespace {

constexpr const char* kOp = "train_epoch";

// The value, m and v of one parameter; `step` if it is on the device, else how many updates came before.
struct State {
  TensorView value, m, v;
  std::optional<TensorView> step;
  double step_before;
};

State read_state(const pybind11::tuple& from) {
  check(from.size() == 5, kOp, ": expected 5 values for a parameter, got ", from.size());
  return {from[0].cast<TensorView>(), from[1].cast<TensorView>(), from[2].cast<TensorView>(),
          from[3].cast<std::optional<TensorView>>(), from[4].cast<double>()};
}

EpochParameter read_parameter(const char* name, const State& state, int64_t rows, int64_t columns) {
  for (const TensorView* t : {&state.value, &state.m, &state.v}) {
    if (columns)
      check_matrix(kOp, name, *t, DType::f32, rows, columns);
    else
      check_vector(kOp, name, *t, DType::f32, rows);
    check_contiguous(kOp, name, *t);
  }
  if (state.step) {
    check_dtype(kOp, "step", *state.step, DType::f32);
    check(state.step->numel() == 1, kOp, ": step must have one element");
  }
  return {state.value.as<float>(), state.m.as<float>(), state.v.as<float>(),
          state.step ? state.step->as<float>() : nullptr, state.step_before};
}

// Network and batch of a call whose shapes have yet to be checked.
EpochShape shape_of(const TensorView& w1, const TensorView& w2, int64_t batch) {
  check_ndim(kOp, "W1", w1, 2);
  check_ndim(kOp, "W2", w2, 2);
  const EpochShape shape = {w1.shape[1], w1.shape[0], w2.shape[0], batch};
  check(shape.features > 0 && shape.hidden > 0 && shape.classes > 0 && batch > 0, kOp, ": nothing to do");
  return shape;
}

std::string why_not(const TensorView& w1, const TensorView& w2, int64_t batch, int cluster) {
  const CudaCall call(kOp, {&w1, &w2});
  return why_no_epoch(shape_of(w1, w2, batch), cluster);
}

void train(const TensorView& images, const TensorView& labels, const TensorView& order, int64_t batch,
           double scale, double shift, int64_t ignore_index, const std::vector<pybind11::tuple>& parameters,
           double lr, const std::optional<TensorView>& rates, double beta1, double beta2, double eps,
           double weight_decay, bool decoupled, const std::optional<TensorView>& not_taken,
           const TensorView& losses, const TensorView& scratch, int cluster) {
  check(parameters.size() == kEpochParameters, kOp, ": expected 4 parameters");
  std::vector<State> states;
  for (const pybind11::tuple& parameter : parameters) states.push_back(read_state(parameter));
  EpochArgs args = {};
  args.shape = shape_of(states[0].value, states[2].value, batch);
  const auto [features, hidden, classes, rows] = args.shape;
  check_ndim(kOp, "images", images, 2);
  args.held = images.shape[0];
  check_matrix(kOp, "images", images, DType::u8, args.held, features);
  check_contiguous(kOp, "images", images);
  check_vector(kOp, "labels", labels, DType::i64, args.held);
  check_contiguous(kOp, "labels", labels);
  check_ndim(kOp, "permutation", order, 1);
  args.count = order.shape[0];
  check(args.count > 0, kOp, ": there are no images");
  check_vector(kOp, "permutation", order, DType::i64, args.count);
  check_contiguous(kOp, "permutation", order);
  args.parameters[0] = read_parameter("W1", states[0], hidden, features);
  args.parameters[1] = read_parameter("b1", states[1], hidden, 0);
  args.parameters[2] = read_parameter("W2", states[2], classes, hidden);
  args.parameters[3] = read_parameter("b2", states[3], classes, 0);
  if (not_taken) check_vector(kOp, "not_taken", *not_taken, DType::i64, 1);
  check_vector(kOp, "losses", losses, DType::f32, epoch_steps(args));
  check_contiguous(kOp, "losses", losses);
  if (rates) {
    check_vector(kOp, "lr", *rates, DType::f64, epoch_steps(args));
    check_contiguous(kOp, "lr", *rates);
  }
  check_vector(kOp, "scratch", scratch, DType::u8,
               static_cast<int64_t>(epoch_scratch_bytes(epoch_steps(args))));
  check_contiguous(kOp, "scratch", scratch);
  check(reinterpret_cast<uintptr_t>(scratch.data) % kEpochHead == 0, kOp, ": scratch is misaligned");

  args.images = images.as<uint8_t>();
  args.labels = labels.as<int64_t>();
  args.order = order.as<int64_t>();
  args.scale = static_cast<float>(scale);
  args.shift = static_cast<float>(shift);
  args.ignore_index = ignore_index;
  args.adam.lr = lr;
  args.rates = rates ? rates->as<double>() : nullptr;
  args.adam.beta1 = beta1;
  args.adam.beta2 = beta2;
  args.adam.eps = eps;
  args.adam.weight_decay = weight_decay;
  args.adam.decoupled = decoupled;
  args.not_taken = not_taken ? not_taken->as<int64_t>() : nullptr;
  args.losses = losses.as<float>();

  const CudaCall call(kOp, {&images, &labels, &order, pointer(rates), pointer(not_taken), &losses, &scratch});
  for (const State& s : states) common_device(kOp, {&images, &s.value, &s.m, &s.v, pointer(s.step)});
  raise_bad_index();
  train_epoch(args, cluster, scratch.data, call.stream());
}

}  // namespace

void register_epoch(pybind11::module_& m) {
  m.def("epoch_scratch_bytes", &epoch_scratch_bytes);
  m.def("why_no_epoch", &why_not);
  m.def("train_epoch", &train);
}

}  // namespace fastnn::cuda
