// ChainStep: one training step of a chain of linear layers, checked and run in one call.
#include "ops/train_step/train_step.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings/accumulator_hooks.h"
#include "bindings/activation_caster.h"
#include "bindings/adagrad_step.h"
#include "bindings/adam_step.h"
#include "bindings/arena.h"
#include "bindings/collectable.h"
#include "bindings/optimizer_group.h"
#include "bindings/registration.h"
#include "bindings/rmsprop_step.h"
#include "bindings/sgd_step.h"
#include "bindings/tensor_caster.h"
#include "bindings/train_step_batch.h"
#include "core/check.h"
#include "core/scratch.h"
#include "dispatch/cpu_dispatch.h"

namespace py = pybind11;

namespace fastnn {

namespace {

// One parameter of the chain during a call.
struct Parameter {
  PyObject* object = nullptr;
  TensorView view;
  ParameterUpdate update;
  py::object gradient;  // the parameter's .grad, if it is kept
  TensorView gradient_view;
};

struct Layer {
  py::dict parameters;  // the module's own: read in every call, so that a replacement is noticed
  Activation activation;
};

bool is_none(PyObject* object, PyObject* attribute) {
  return owned(PyObject_GetAttr(object, attribute)).ptr() == Py_None;
}

// Refuses parameters for which torch does more than the update.
void check_plain(PyObject* param) {
  refuse_if(
      !requires_grad(param),
      "a parameter of the chain is frozen: run frozen layers by themselves, and give the TrainStep the rest");
  refuse_if(has_hooks(param), "a parameter has a hook");
}

class ChainStep {
 public:
  ChainStep(std::vector<std::pair<py::dict, Activation>> layers, const std::string& optimizer, bool flatten,
            std::optional<double> max_norm, bool keep_grad, double mean, double std,
            py::function match_layout, py::function accumulator_hooks)
      : run_with_(run_with(optimizer)),
        flatten_(flatten),
        max_norm_(max_norm),
        keep_grad_(keep_grad),
        byte_scale_(1 / (255 * std)),
        byte_shift_(-mean / std),
        match_layout_(std::move(match_layout)),
        accumulator_hooks_(std::move(accumulator_hooks)),
        accumulators_(2 * layers.size()) {
    for (auto& [parameters, activation] : layers) layers_.push_back({std::move(parameters), activation});
    check(!layers_.empty(), kTrainStep, ": no layers");
  }

  // How many steps were taken: fewer than there are batches if the number of threads should change, or if the
  // next has a row or a class index out of range, which raises IndexError if it is the only one. Or, with
  // nothing written, a str that says why torch must do the step, or None if the optimizer has no state yet.
  // The caller makes sure that there is one call at a time.
  py::object run(const py::list& groups, const py::dict& state, TrainStepBatches& batches) {
    // Python code that runs within a call, e.g. a signal handler, may take a step itself.
    if (running_) return py::str("a call of this step is under way");
    const Running running{running_};
    return (this->*run_with_)(groups, state, batches);
  }

  // For the rows and targets of the batches of a call.
  ScratchBuffer& batch_memory() { return batch_memory_; }

  int traverse(visitproc visit, void* arg) const {
    for (const Layer& layer : layers_) Py_VISIT(layer.parameters.ptr());
    for (const Parameter& parameter : parameters_) Py_VISIT(parameter.gradient.ptr());
    for (const AccumulatorHooks& hooks : accumulators_)
      if (const int stop = hooks.traverse(visit, arg)) return stop;
    Py_VISIT(match_layout_.ptr());
    Py_VISIT(accumulator_hooks_.ptr());
    return 0;
  }
  void clear() {
    layers_.clear();
    parameters_.clear();
    accumulators_.clear();
    match_layout_ = py::function();
    accumulator_hooks_ = py::function();
  }

 private:
  void read_parameters() {
    static Interned weight_key("weight");
    static Interned bias_key("bias");
    refuse_if(layers_.empty(), "the garbage collector has cleared the step");
    parameters_.clear();
    for (const Layer& layer : layers_)
      for (PyObject* key : std::initializer_list<PyObject*>{weight_key, bias_key}) {
        Parameter parameter;
        parameter.object = PyDict_GetItemWithError(layer.parameters.ptr(), key);
        refuse_if(!parameter.object, "a layer lacks weight or bias");
        if (parameter.object == Py_None) parameter.object = nullptr;
        refuse_if(key == weight_key && !parameter.object, "a layer has no weight");
        parameters_.push_back(std::move(parameter));
      }
  }

  using RunWith = py::object (ChainStep::*)(const py::list&, const py::dict&, TrainStepBatches&);

  static RunWith run_with(const std::string& optimizer) {
    if (optimizer == "adam") return &ChainStep::run_by<AdamStep>;
    if (optimizer == "sgd") return &ChainStep::run_by<SgdStep>;
    if (optimizer == "rmsprop") return &ChainStep::run_by<RmspropStep>;
    check(optimizer == "adagrad", kTrainStep, ": no update for ", optimizer);
    return &ChainStep::run_by<AdagradStep>;
  }

  template <class GroupStep>
  py::object run_by(const py::list& groups, const py::dict& state, TrainStepBatches& batches) {
    static TorchAttribute increment_version("torch.autograd.graph", "increment_version");
    Progress<GroupStep> p{*this, batches};
    TrainStepArgs& args = p.args;
    py::list written;
    bool stepped = true;
    const auto reason = why_not([&] {
      read_parameters();
      batches.read_input(flatten_, args);
      batches.read_target(read_plain(parameters_[parameters_.size() - 2].object), args);
      stepped = batches.take(0, args, p.totals);
      if (!stepped) return;
      const bool has_state = read_groups(groups, state, batches, args, p.groups);
      lay_out(args);
      GroupStep& all = p.groups.front();
      for (size_t i = 1; i < p.groups.size(); ++i) all.also_touches(p.groups[i]);
      all.also_reads(args.input);
      for (const Parameter& parameter : parameters_)
        if (parameter.gradient) all.also_writes(parameter.gradient_view);
      all.check_disjoint();
      // After all other checks: the state is then created only if this step needs it.
      if (!has_state) throw Uninitialized();
    });
    if (reason) return *reason;
    if (!stepped) return py::int_(0);
    for (GroupStep& step : p.groups) {
      step.commit();
      for (const py::handle tensor : step.written()) written.append(tensor);
    }
    set_gradients(written);
    // Before they are written: it must be done even if an exception follows, e.g. from a signal handler.
    owned(PyObject_CallOneArg(increment_version, written.ptr()));
    {
      const KernelCall call(work_, batches.steps());
      cpu_kernels().train_step.run(args, batches.steps() > 1 ? Progress<GroupStep>::next : nullptr, &p);
    }
    return py::int_(p.taken);
  }

  // The progress of one call through its steps.
  template <class GroupStep>
  struct Progress {
    ChainStep& self;
    const TrainStepBatches& batches;
    std::vector<GroupStep> groups = {};
    TrainStepArgs args = {};
    CrossEntropyTotals totals = {};
    int64_t taken = 1;

    // Prepares the next step, if it can be taken.
    static bool next(void* context) {
      Progress& p = *static_cast<Progress*>(context);
      if (p.taken == p.batches.steps() || !p.batches.take(p.taken, p.args, p.totals)) return false;
      for (GroupStep& group : p.groups) {
        group.count_step();
        if (p.batches.rates()) group.set_lr(p.batches.rates()[p.taken]);
        for (TrainStepLayer& layer : p.self.chain_)
          for (ParameterUpdate* const update : {&layer.weight_update, &layer.bias_update})
            FASTNN_ISA::visit_update(*update, [&](auto& tensor, const auto& options) {
              // All are of the same optimizer, whatever else the union could hold.
              if constexpr (std::is_same_v<decltype(options), decltype(group.options())>)
                if (&options == &group.options()) group.advance(tensor);
            });
      }
      ++p.taken;
      return true;
    }
  };

  // Whether every parameter has its state.
  template <class GroupStep>
  bool read_groups(const py::list& groups, const py::dict& state, const TrainStepBatches& batches,
                   const TrainStepArgs& args, std::vector<GroupStep>& steps) {
    steps.reserve(groups.size());
    size_t found = 0, wanted = 0;
    bool has_state = true;
    for (const py::handle group : groups) {
      GroupStep& step = steps.emplace_back(py::reinterpret_borrow<py::dict>(group), state, match_layout_);
      if (batches.rates()) step.set_lr(batches.rates()[0]);
      const auto accept = [&](PyObject* object) {
        find(object);
        check_plain(object);
      };
      has_state &=
          step.each_parameter(accept, [&](PyObject* object, const TensorView& view, const auto& tensor) {
            Parameter& parameter = find(object);
            refuse_if(!view.is_contiguous(), "a parameter is not contiguous");
            refuse_if(view.dtype != args.dtype, "the parameters have several dtypes");
            parameter.view = view;
            AccumulatorHooks& hooks = accumulators_[static_cast<size_t>(&parameter - parameters_.data())];
            refuse_if(hooks.any(object, accumulator_hooks_), "a parameter has a hook");
            parameter.update = {tensor, step.options()};
            ++found;
          });
    }
    for (const Parameter& parameter : parameters_) wanted += parameter.object != nullptr;
    refuse_if(
        found != wanted || steps.empty(),
        "the optimizer does not have every parameter of the chain: run the layers that it does not train by "
        "themselves, and give the TrainStep the rest");
    return has_state;
  }

  Parameter& find(PyObject* object) {
    for (Parameter& parameter : parameters_)
      if (parameter.object == object) {
        refuse_if(parameter.view.data != nullptr, "a parameter is in several groups");
        return parameter;
      }
    throw NotCovered(
        "the optimizer has parameters that the chain lacks: give each model an optimizer and a TrainStep of "
        "its own");
  }

  // Fills in the layers, with their buffers in `memory_`.
  void lay_out(TrainStepArgs& args) {
    const int64_t m = args.batch, size = dtype_size(args.dtype);
    const size_t depth = layers_.size();
    const bool bytes = args.input.dtype == DType::u8;
    if (!bytes && args.input.dtype != args.dtype)
      throw NotCovered(
          concat("the input is ", dtype_name(args.input.dtype), ", the model ", dtype_name(args.dtype)));
    const bool stored = keep_grad_ || max_norm_.has_value();
    Arena arena;
    std::vector<size_t>& at = offsets_;
    at.clear();
    int64_t width = args.input.shape[1], widest = 0;
    at.push_back(arena.take(bytes || args.rows ? m * width : 0, size));
    work_ = 0;
    for (size_t l = 0; l < depth; ++l) {
      Parameter& weight = parameters_[2 * l];
      Parameter& bias = parameters_[2 * l + 1];
      refuse_if(weight.view.ndim != 2 || weight.view.shape[1] != width,
                "a layer does not take as many features as it is given");
      width = weight.view.shape[0];
      refuse_if(weight.view.shape[1] == 0 || width == 0, "a layer has no features");
      refuse_if(bias.object && (bias.view.ndim != 1 || bias.view.shape[0] != width),
                "a bias does not fit its layer");
      if (width > widest) widest = width;
      at.push_back(arena.take(m * width, size));
      at.push_back(arena.take(from_preactivation(layers_[l].activation) ? m * width : 0, size));
      at.push_back(arena.take(stored && !keep_grad_ ? weight.view.numel() : 0, size));
      at.push_back(arena.take(bias.object && !keep_grad_ ? width : 0, size));
      work_ += weight.view.numel() * 3 * m / 16 + weight.view.numel() * 8;  // three products, an update
    }
    const size_t even = arena.take(m * widest, size), odd = arena.take(m * widest, size);
    memory_.grow(arena.size());
    const auto address = [&](size_t offset) { return static_cast<char*>(memory_.data()) + offset; };

    chain_.resize(depth);
    for (size_t l = 0; l < depth; ++l) {
      Parameter& weight = parameters_[2 * l];
      Parameter& bias = parameters_[2 * l + 1];
      TrainStepLayer& layer = chain_[l];
      const int64_t n = weight.view.shape[0];
      const size_t* const own = &at[1 + 4 * l];
      layer.weight = weight.view;
      layer.bias = bias.object ? bias.view : TensorView{};
      layer.activation = layers_[l].activation;
      layer.output = contiguous_matrix(address(own[0]), args.dtype, m, n);
      layer.preactivation = contiguous_matrix(address(own[1]), args.dtype, m, n);
      layer.gradient = contiguous_matrix(address(l % 2 ? odd : even), args.dtype, m, n);
      layer.weight_gradient = keep_grad_ ? kept_gradient(weight) : stored ? address(own[2]) : nullptr;
      layer.bias_gradient = !bias.object ? nullptr : keep_grad_ ? kept_gradient(bias) : address(own[3]);
      layer.weight_update = with_gradient(weight.update, layer.weight_gradient);
      layer.bias_update = with_gradient(bias.update, layer.bias_gradient);
    }
    args.images = contiguous_matrix(address(at[0]), args.dtype, m, args.input.shape[1]);
    args.byte_scale = byte_scale_;
    args.byte_shift = byte_shift_;
    args.layers = chain_.data();
    args.depth = static_cast<int64_t>(depth);
    args.keep_grad = keep_grad_;
    args.clip = max_norm_.has_value();
    args.max_norm = max_norm_.value_or(0);
  }

  static ParameterUpdate with_gradient(ParameterUpdate update, const void* gradient) {
    FASTNN_ISA::visit_update(update, [&](auto& tensor, const auto&) { tensor.grad = gradient; });
    return update;
  }

  // The memory of the parameter's .grad, which becomes a new tensor unless the present one fits.
  void* kept_gradient(Parameter& parameter) const {
    static Interned grad_key("grad");
    static TorchAttribute empty_like("torch", "empty_like");
    parameter.gradient = owned(PyObject_GetAttr(parameter.object, grad_key));
    if (parameter.gradient.is_none() || requires_grad(parameter.gradient.ptr()))
      parameter.gradient = owned(PyObject_CallOneArg(empty_like, parameter.object));
    const TensorView view = read_plain(parameter.gradient.ptr());
    refuse_if(
        view.dtype != parameter.view.dtype || !view.is_contiguous() || view.numel() != parameter.view.numel(),
        "a .grad does not fit its parameter");
    parameter.gradient_view = view;
    return view.data;
  }

  // Sets the .grad that the parameters have after the step.
  void set_gradients(py::list& written) {
    static Interned grad_key("grad");
    for (Parameter& parameter : parameters_) {
      if (!parameter.object) continue;
      if (!keep_grad_ && is_none(parameter.object, grad_key)) continue;
      PyObject* const gradient = keep_grad_ ? parameter.gradient.ptr() : Py_None;
      if (PyObject_SetAttr(parameter.object, grad_key, gradient) != 0) throw py::error_already_set();
      if (keep_grad_) written.append(parameter.gradient);
    }
  }

  struct Running {
    explicit Running(bool& flag) : flag(flag) { flag = true; }
    ~Running() { flag = false; }
    bool& flag;
  };

  std::vector<Layer> layers_;
  bool running_ = false;
  RunWith run_with_;
  bool flatten_;  // the input's dimensions after the first are merged
  std::optional<double> max_norm_;
  bool keep_grad_;
  double byte_scale_, byte_shift_;
  py::function match_layout_, accumulator_hooks_;
  std::vector<AccumulatorHooks> accumulators_;  // of weight and bias of each layer in turn

  // Of one call; kept so that the next one need not allocate.
  std::vector<Parameter> parameters_;  // weight and bias of each layer in turn
  std::vector<TrainStepLayer> chain_;
  std::vector<size_t> offsets_;
  ScratchBuffer memory_, batch_memory_;
  int64_t work_ = 0;  // operations of a step
};

}  // namespace

void register_train_step(py::module_& m) {
  py::class_<ChainStep>(m, "ChainStep", collectable<ChainStep>())
      .def(py::init<std::vector<std::pair<py::dict, Activation>>, const std::string&, bool,
                    std::optional<double>, bool, double, double, py::function, py::function>())
      .def("run",
           [](ChainStep& step, const py::list& groups, const py::dict& state, py::object input,
              py::object target, const TensorView& loss, py::tuple options) {
             TrainStepBatches batch(std::move(input), std::move(target), loss, std::move(options),
                                    step.batch_memory());
             return step.run(groups, state, batch);
           })
      .def("run_batches",
           [](ChainStep& step, const py::list& groups, const py::dict& state, py::object images,
              py::object labels, const TensorView& losses, py::tuple options, const TensorView& rows,
              const std::optional<TensorView>& rates) {
             const int64_t steps = losses.numel();
             check_dtype(kTrainStep, "rows", rows, DType::i64);
             check(steps > 0 && rows.numel() > 0 && rows.numel() % steps == 0 && rows.is_contiguous(),
                   kTrainStep, ": rows has shape ", shape_string(rows));
             if (rates) {
               check_vector(kTrainStep, "rates", *rates, DType::f64, steps);
               check_contiguous(kTrainStep, "rates", *rates);
             }
             TrainStepBatches batches(std::move(images), std::move(labels), losses, std::move(options),
                                      step.batch_memory());
             batches.set_rows(rows.as<int64_t>(), rates ? rates->as<double>() : nullptr, rows.numel() / steps,
                              steps);
             return step.run(groups, state, batches);
           });
}

}  // namespace fastnn
