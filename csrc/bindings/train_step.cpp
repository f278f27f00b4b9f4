// TrainStep: one training step of a chain of linear layers, checked and run in one call.
#include "ops/train_step/train_step.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/activation_caster.h"
#include "bindings/adam_step.h"
#include "bindings/class_indices.h"
#include "bindings/collectable.h"
#include "bindings/optimizer_group.h"
#include "bindings/registration.h"
#include "bindings/sgd_step.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/cpu_dispatch.h"
#include "core/scratch.h"

namespace py = pybind11;

namespace fastnn {

namespace {

constexpr const char* kOp = "TrainStep";

// One parameter of the chain during a call.
struct Parameter {
  PyObject* object = nullptr;
  TensorView view;
  ParameterUpdate update{};
  py::object gradient;  // the parameter's .grad, where it is kept
  TensorView gradient_view;
};

struct Layer {
  py::dict parameters;  // the module's own: looked at in every call, so that a replaced one is seen
  Activation activation;
};

// What one call is given. `loss` is written.
struct Batch {
  py::object input;
  py::object target;
  py::object class_weight;  // or None
  TensorView loss;
  std::string loss_kind;  // cross_entropy or mse_loss
  int reduction;
  int64_t ignore_index;
  double label_smoothing;
  double z_loss;
};

// Parts of one block of memory, each on a cache line of its own.
class Arena {
 public:
  size_t take(int64_t values, int64_t value_size) {
    const size_t at = size_;
    size_ += (static_cast<size_t>(values * value_size) + 63) / 64 * 64;
    return at;
  }
  size_t size() const { return size_; }

 private:
  size_t size_ = 0;
};

void refuse_if(bool condition, const char* why) {
  if (condition) throw NotCovered(why);
}

bool is_true(PyObject* object, PyObject* attribute) {
  return owned(PyObject_GetAttr(object, attribute)).ptr() == Py_True;
}

// None, or what is left when the last hook has been removed.
bool has_hooks(PyObject* object, PyObject* attribute) {
  const py::object hooks = owned(PyObject_GetAttr(object, attribute));
  return !hooks.is_none() && py::len(hooks) > 0;
}

bool is_none(PyObject* object, PyObject* attribute) {
  return owned(PyObject_GetAttr(object, attribute)).ptr() == Py_None;
}

// What torch does for a parameter beyond the update is its business.
void check_plain(PyObject* param) {
  static PyObject* const requires_grad = interned("requires_grad");
  static PyObject* const hooks = interned("_backward_hooks");
  static PyObject* const later_hooks = interned("_post_accumulate_grad_hooks");
  refuse_if(!is_true(param, requires_grad), "a parameter of the chain is frozen");
  refuse_if(has_hooks(param, hooks) || has_hooks(param, later_hooks), "a parameter has a hook");
}

class TrainStep {
 public:
  TrainStep(std::vector<std::pair<py::dict, Activation>> layers, const std::string& optimizer, bool flatten,
            bool squeeze, std::optional<double> max_norm, bool keep_grad, double mean, double std,
            py::function match_layout)
      : adam_(optimizer == "adam"),
        flatten_(flatten),
        squeeze_(squeeze),
        max_norm_(max_norm),
        keep_grad_(keep_grad),
        byte_scale_(1 / (255 * std)),
        byte_shift_(-mean / std),
        match_layout_(std::move(match_layout)) {
    for (auto& [parameters, activation] : layers) layers_.push_back({std::move(parameters), activation});
    check(!layers_.empty(), kOp, ": no layers");
  }

  // The tensors that were written; or, with nothing written, a str that says why torch must do the step, or
  // None where the optimizer has no state yet. Raises IndexError for a class index that is out of range. One
  // call at a time: the caller sees to that.
  py::object run(const py::list& groups, const py::dict& state, Batch& batch) {
    return adam_ ? run_with<AdamStep>(groups, state, batch) : run_with<SgdStep>(groups, state, batch);
  }

  int traverse(visitproc visit, void* arg) const {
    for (const Layer& layer : layers_) Py_VISIT(layer.parameters.ptr());
    for (const Parameter& parameter : parameters_) Py_VISIT(parameter.gradient.ptr());
    Py_VISIT(match_layout_.ptr());
    return 0;
  }
  void clear() {
    layers_.clear();
    parameters_.clear();
    match_layout_ = py::function();
  }

 private:
  void read_parameters() {
    static PyObject* const weight_key = interned("weight");
    static PyObject* const bias_key = interned("bias");
    refuse_if(layers_.empty(), "the garbage collector has been here");
    parameters_.clear();
    for (const Layer& layer : layers_)
      for (PyObject* key : {weight_key, bias_key}) {
        Parameter parameter;
        parameter.object = PyDict_GetItemWithError(layer.parameters.ptr(), key);
        refuse_if(!parameter.object, "a layer lacks weight or bias");
        if (parameter.object == Py_None) parameter.object = nullptr;
        refuse_if(key == weight_key && !parameter.object, "a layer has no weight");
        parameters_.push_back(std::move(parameter));
      }
  }

  template <class GroupStep>
  py::object run_with(const py::list& groups, const py::dict& state, Batch& batch) {
    std::vector<GroupStep> steps;
    TrainStepArgs args{};
    CrossEntropyTotals totals{};
    try {
      read_parameters();
      read_input(batch, args);
      read_loss(batch, args);
      read_groups(groups, state, args, steps);
      lay_out(args);
      GroupStep& all = steps.front();
      for (size_t i = 1; i < steps.size(); ++i) all.also_touches(steps[i]);
      all.also_reads(args.input);
      for (const Parameter& parameter : parameters_)
        if (parameter.gradient) all.also_writes(parameter.gradient_view);
      all.check_disjoint();
      if (args.loss_kind == TrainStepLoss::cross_entropy) totals = count_targets(args);
    } catch (const Uninitialized&) {
      return py::none();
    } catch (const py::error_already_set& error) {
      if (!error.matches(PyExc_Exception)) throw;
      return py::str(py::str(error.value()));
    } catch (const std::runtime_error& reason) {
      return py::str(reason.what());
    }
    args.cross_entropy.totals = &totals;
    py::list written;
    for (GroupStep& step : steps) {
      step.commit();
      for (const py::handle tensor : step.written()) written.append(tensor);
    }
    set_gradients(written);
    {
      const ReleaseGil released(work_);
      cpu_kernels().train_step.run(args);
    }
    return written;
  }

  // As (M, K).
  void read_input(const Batch& batch, TrainStepArgs& args) const {
    static PyObject* const requires_grad = interned("requires_grad");
    TensorView x = read_plain(batch.input.ptr());
    check_not_negated(batch.input.ptr());
    refuse_if(is_true(batch.input.ptr(), requires_grad), "the input requires grad");
    if (flatten_ && x.ndim > 2) {
      refuse_if(!x.is_contiguous(), "an input to be flattened is not contiguous");
      x = contiguous_matrix(x.data, x.dtype, x.shape[0], x.shape[0] ? x.numel() / x.shape[0] : 0);
    }
    refuse_if(x.ndim != 2, "the input is no matrix");
    refuse_if(x.shape[0] == 0, "the batch is empty");
    args.input = x;
  }

  void read_loss(Batch& batch, TrainStepArgs& args) const {
    const TensorView weight = read_plain(parameters_[parameters_.size() - 2].object);
    args.dtype = weight.dtype;
    refuse_if(args.dtype != DType::f32 && args.dtype != DType::f64,
              "the parameters are neither float32 nor float64");
    const int64_t m = args.input.shape[0], classes = weight.ndim == 2 ? weight.shape[0] : 0;
    refuse_if(classes == 0, "the last layer has no outputs");
    const bool vector = squeeze_ && classes == 1;
    check_not_negated(batch.target.ptr());
    TensorView target = read_plain(batch.target.ptr());
    if (!target.is_contiguous()) {
      static PyObject* const contiguous = interned("contiguous");
      batch.target = owned(PyObject_CallMethodNoArgs(batch.target.ptr(), contiguous));
      target = read_plain(batch.target.ptr());
    }
    args.target = target.data;
    args.loss = batch.loss.data;
    check_dtype(kOp, "loss", batch.loss, args.dtype);
    check_same_shape(kOp, "loss", batch.loss, TensorView{});
    CrossEntropyArgs& loss = args.cross_entropy;
    loss.reduction = static_cast<Reduction>(batch.reduction);
    refuse_if(loss.reduction == Reduction::none, "the loss is not reduced to one number");
    args.mean = loss.reduction == Reduction::mean;
    if (batch.loss_kind == "mse_loss") {
      static PyObject* const requires_grad = interned("requires_grad");
      args.loss_kind = TrainStepLoss::mean_squared_error;
      refuse_if(is_true(batch.target.ptr(), requires_grad), "the target requires grad");
      refuse_if(target.dtype != args.dtype, "the target has another dtype than the model");
      refuse_if(
          target.ndim != (vector ? 1 : 2) || target.shape[0] != m || (!vector && target.shape[1] != classes),
          "the target has another shape than the output");
      return;
    }
    args.loss_kind = TrainStepLoss::cross_entropy;
    refuse_if(vector, "the output has no classes");
    refuse_if(target.dtype != DType::i64 && target.dtype != DType::u8,
              "the target holds no class indices of int64 or uint8");
    refuse_if(target.ndim != 1 || target.shape[0] != m, "the target has another batch size than the input");
    loss.dtype = args.dtype;
    loss.outer = m;
    loss.classes = loss.outer_stride = classes;
    loss.inner = 1;
    loss.target_dtype = target.dtype;
    loss.target = target.data;
    loss.ignore_index = batch.ignore_index;
    loss.label_smoothing = batch.label_smoothing;
    loss.z_loss = batch.z_loss;
    if (batch.class_weight.is_none()) return;
    const TensorView class_weight = read_plain(batch.class_weight.ptr());
    refuse_if(class_weight.dtype != args.dtype || class_weight.ndim != 1 ||
                  class_weight.shape[0] != classes || !class_weight.is_contiguous(),
              "the class weights do not fit the classes");
    loss.weight = class_weight.data;
  }

  static CrossEntropyTotals count_targets(const TrainStepArgs& args) {
    const CrossEntropyTotals totals = cpu_kernels().cross_entropy.count(args.cross_entropy);
    if (totals.bad_row >= 0) throw target_out_of_bounds(args.cross_entropy, totals.bad_row);
    return totals;
  }

  template <class GroupStep>
  void read_groups(const py::list& groups, const py::dict& state, const TrainStepArgs& args,
                   std::vector<GroupStep>& steps) {
    steps.reserve(groups.size());
    size_t found = 0, wanted = 0;
    for (const py::handle group : groups) {
      GroupStep& step = steps.emplace_back(py::reinterpret_borrow<py::dict>(group), state, match_layout_);
      const auto accept = [&](PyObject* object) {
        find(object);
        check_plain(object);
      };
      step.each_parameter(accept, [&](PyObject* object, const TensorView& view, const auto& tensor) {
        Parameter& parameter = find(object);
        refuse_if(!view.is_contiguous(), "a parameter is not contiguous");
        refuse_if(view.dtype != args.dtype, "the parameters have several dtypes");
        parameter.view = view;
        set_update(parameter.update, tensor, step.options());
        ++found;
      });
    }
    for (const Parameter& parameter : parameters_) wanted += parameter.object != nullptr;
    refuse_if(found != wanted || steps.empty(), "the optimizer does not have every parameter of the chain");
  }

  Parameter& find(PyObject* object) {
    for (Parameter& parameter : parameters_)
      if (parameter.object == object) {
        refuse_if(parameter.view.data != nullptr, "a parameter is in several groups");
        return parameter;
      }
    throw NotCovered("the optimizer has parameters that the chain lacks");
  }

  static void set_update(ParameterUpdate& update, const AdamTensor& tensor, const AdamOptions& options) {
    update.adam = tensor;
    update.adam_options = &options;
  }
  static void set_update(ParameterUpdate& update, const SgdTensor& tensor, const SgdOptions& options) {
    update.sgd = tensor;
    update.sgd_options = &options;
  }

  // Fills in the layers, with their buffers in `memory_`.
  void lay_out(TrainStepArgs& args) {
    const int64_t m = args.input.shape[0], size = dtype_size(args.dtype);
    const size_t depth = layers_.size();
    const bool bytes = args.input.dtype == DType::u8;
    refuse_if(!bytes && args.input.dtype != args.dtype, "the input has another dtype than the model");
    refuse_if(bytes && args.input.shape[1] > 1 && args.input.strides[1] != 1,
              "the rows of the images are not contiguous");
    const bool stored = keep_grad_ || max_norm_.has_value();
    Arena arena;
    std::vector<size_t>& at = offsets_;
    at.clear();
    int64_t width = args.input.shape[1], widest = 0;
    at.push_back(arena.take(bytes ? m * width : 0, size));
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
      work_ += m * weight.view.numel();
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
      layer.weight_update = weight.update;
      layer.bias_update = bias.update;
      layer.weight_update.adam.grad = layer.weight_update.sgd.grad = layer.weight_gradient;
      layer.bias_update.adam.grad = layer.bias_update.sgd.grad = layer.bias_gradient;
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

  // The memory of the parameter's .grad, which becomes a new tensor where there is none that fits.
  void* kept_gradient(Parameter& parameter) const {
    static PyObject* const grad_key = interned("grad");
    static PyObject* const empty_like = torch_attribute("torch", "empty_like");
    static PyObject* const requires_grad = interned("requires_grad");
    parameter.gradient = owned(PyObject_GetAttr(parameter.object, grad_key));
    if (parameter.gradient.is_none() || is_true(parameter.gradient.ptr(), requires_grad))
      parameter.gradient = owned(PyObject_CallOneArg(empty_like, parameter.object));
    const TensorView view = read_plain(parameter.gradient.ptr());
    refuse_if(
        view.dtype != parameter.view.dtype || !view.is_contiguous() || view.numel() != parameter.view.numel(),
        "a .grad does not fit its parameter");
    parameter.gradient_view = view;
    return view.data;
  }

  // Gives the parameters the .grad that they have after the step.
  void set_gradients(py::list& written) {
    static PyObject* const grad_key = interned("grad");
    for (Parameter& parameter : parameters_) {
      if (!parameter.object) continue;
      if (!keep_grad_ && is_none(parameter.object, grad_key)) continue;
      PyObject* const gradient = keep_grad_ ? parameter.gradient.ptr() : Py_None;
      if (PyObject_SetAttr(parameter.object, grad_key, gradient) != 0) throw py::error_already_set();
      if (keep_grad_) written.append(parameter.gradient);
    }
  }

  std::vector<Layer> layers_;
  bool adam_;
  bool flatten_;  // the input's dimensions behind the first are one
  bool squeeze_;  // the output has no second dimension where that is 1
  std::optional<double> max_norm_;
  bool keep_grad_;
  double byte_scale_, byte_shift_;
  py::function match_layout_;

  // Of one call; kept so that the next one need not allocate.
  std::vector<Parameter> parameters_;  // weight and bias of each layer in turn
  std::vector<TrainStepLayer> chain_;
  std::vector<size_t> offsets_;
  ScratchBuffer memory_;
  int64_t work_ = 0;
};

}  // namespace

void register_train_step(py::module_& m) {
  py::class_<TrainStep>(m, "TrainStep", collectable<TrainStep>())
      .def(py::init<std::vector<std::pair<py::dict, Activation>>, const std::string&, bool, bool,
                    std::optional<double>, bool, double, double, py::function>())
      .def("run",
           [](TrainStep& step, const py::list& groups, const py::dict& state, py::object input,
              py::object target, const TensorView& loss, py::object class_weight, std::string loss_kind,
              int reduction, int64_t ignore_index, double label_smoothing, double z_loss) {
             Batch batch = {
                 std::move(input), std::move(target), std::move(class_weight), loss,  std::move(loss_kind),
                 reduction,        ignore_index,      label_smoothing,         z_loss};
             return step.run(groups, state, batch);
           });
}

}  // namespace fastnn
