// A captured step, replayed: python/fastnn/capture/ records it and lays it out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/collectable.h"
#include "bindings/optimizer_group.h"
#include "bindings/program_batches.h"
#include "bindings/program_instructions.h"
#include "bindings/program_memory.h"
#include "bindings/program_step.h"
#include "bindings/registration.h"
#include "bindings/tensor_caster.h"

namespace py = pybind11;

namespace fastnn {

namespace {

// Exactly one of these, by `kind`: consecutive instructions, a Python function, or an optimizer.
struct Node {
  enum class Kind { run, python, optimizer };

  Kind kind = Kind::run;
  ProgramInstructions::Run run;
  bool takes_tensors = true;  // whether the function takes the tensors among the arguments, and the outputs
  py::object function;        // also takes an optimizer's step that cannot run natively
  py::object optimizer;
  std::string rule;
  std::vector<std::pair<py::object, Operand>> gradients;
};

class Program {
 public:
  // states: functions without arguments, each with the object that it returned when recorded.
  // arguments: the specification of (args, kwargs), see arguments.h.
  // buffers: (kind, index, tensor, (dtype, shape, strides), requires_grad, first, bytes, written).
  // outputs: functions that allocate them. nodes: ("native", name, operands, numbers, code, results, error),
  // ("python", function, takes_tensors), ("optimizer", rule, optimizer, [(parameter, buffer, offset)],
  // function). absent: parameters that must have no gradient; cleared: those without one after a call;
  // kept: (parameter, output) of those that get one. written: tensors whose versions are bumped, and
  // written_inputs the numbers of those among the arguments. shared_inputs: arguments in the memory of an
  // earlier one, with their offset in bytes. optimizers: each with all of its parameters.
  Program(std::vector<std::pair<py::object, py::object>> states, py::object watch, const py::tuple& arguments,
          const py::list& buffers, std::vector<py::object> outputs, const py::list& nodes,
          std::vector<py::object> absent, std::vector<py::object> cleared,
          std::vector<std::pair<py::object, size_t>> kept, py::list written,
          std::vector<size_t> written_inputs, std::vector<std::tuple<size_t, size_t, int64_t>> shared_inputs,
          std::vector<std::pair<py::object, py::list>> optimizers, py::object result,
          py::function match_layout)
      : states_(std::move(states)),
        watch_(std::move(watch)),
        arguments_(arguments),
        outputs_(std::move(outputs)),
        absent_(std::move(absent)),
        cleared_(std::move(cleared)),
        kept_(std::move(kept)),
        written_(std::move(written)),
        written_inputs_(std::move(written_inputs)),
        shared_inputs_(std::move(shared_inputs)),
        optimizers_(std::move(optimizers)),
        result_(std::move(result)),
        match_layout_(std::move(match_layout)) {
    for (const py::handle buffer : buffers) memory_.add(py::reinterpret_borrow<py::tuple>(buffer));
    for (const py::handle node : nodes) add_node(py::reinterpret_borrow<py::tuple>(node));
    instructions_.lay_out(memory_);
  }

  // The function's result for (args, kwargs); NotImplemented, with nothing done, if the call does not match
  // the recording.
  py::object run(PyObject* const* call) {
    if (!PyTuple_Check(*call)) throw py::type_error("expected (args, kwargs)");
    const auto arguments = py::reinterpret_borrow<py::tuple>(*call);
    const auto missed = [] { return py::reinterpret_borrow<py::object>(Py_NotImplemented); };
    if (running_) return missed();
    const Running running(*this);
    if (!is_same_call(arguments)) return missed();
    bind();
    count_versions();
    for (const Node& node : nodes_) execute(node);
    settle_gradients();
    ++runs_;
    return make_result();
  }

  // Calls that have been served.
  int64_t runs() const { return runs_; }

  // Whether a call is in progress, in another thread or further up the stack.
  bool running() const { return running_; }

  // The thread of the last call, or of the recording, as Python's identifier.
  unsigned long thread() const { return thread_; }

  int traverse(visitproc visit, void* arg) const {
    for (const auto& [function, value] : states_) {
      Py_VISIT(function.ptr());
      Py_VISIT(value.ptr());
    }
    Py_VISIT(watch_.ptr());
    if (const int stop = arguments_.traverse(visit, arg)) return stop;
    if (const int stop = memory_.traverse(visit, arg)) return stop;
    if (const int stop = instructions_.traverse(visit, arg)) return stop;
    for (const Node& node : nodes_) {
      Py_VISIT(node.function.ptr());
      Py_VISIT(node.optimizer.ptr());
      for (const auto& gradient : node.gradients) Py_VISIT(gradient.first.ptr());
    }
    for (const auto* objects : {&outputs_, &absent_, &cleared_})
      for (const py::object& object : *objects) Py_VISIT(object.ptr());
    for (const auto& entry : kept_) Py_VISIT(entry.first.ptr());
    for (const auto& [optimizer, params] : optimizers_) {
      Py_VISIT(optimizer.ptr());
      Py_VISIT(params.ptr());
    }
    Py_VISIT(written_.ptr());
    Py_VISIT(result_.ptr());
    Py_VISIT(match_layout_.ptr());
    return 0;
  }
  void clear() {
    if (running_) return;
    nodes_.clear();
    instructions_.clear();
    memory_.clear();
    states_.clear();
    outputs_.clear();
    absent_.clear();
    cleared_.clear();
    kept_.clear();
    optimizers_.clear();
    watch_ = py::none();
    result_ = py::none();
    written_ = py::list();
    match_layout_ = py::function();
  }

 private:
  // ---- what Python passed ----

  void add_node(const py::tuple& from) {
    const auto kind = from[0].cast<std::string>();
    if (kind == "native") {
      if (nodes_.empty() || nodes_.back().kind != Node::Kind::run) {
        nodes_.emplace_back();
        nodes_.back().run.begin = instructions_.size();
      }
      return instructions_.add(from, memory_, nodes_.back().run);
    }
    Node node;
    node.kind = kind == "python" ? Node::Kind::python : Node::Kind::optimizer;
    if (kind == "python") {
      node.function = from[1];
      node.takes_tensors = from[2].cast<bool>();
    } else {
      node.rule = from[1].cast<std::string>();
      node.optimizer = from[2];
      for (const py::handle entry : from[3]) {
        const auto gradient = py::reinterpret_borrow<py::tuple>(entry);
        const TensorView p = read_plain(py::object(gradient[0]).ptr());
        node.gradients.emplace_back(gradient[0],
                                    memory_.read_operand(py::make_tuple(gradient[1], gradient[2]), p));
      }
      node.function = from[4];
    }
    nodes_.push_back(std::move(node));
  }

  // ---- one call ----

  bool is_same_call(const py::tuple& arguments) {
    for (const auto& [function, expected] : states_) {
      PyObject* const state = PyObject_CallNoArgs(function.ptr());
      if (!state) throw py::error_already_set();
      Py_DECREF(state);  // compared by address only
      if (state != expected.ptr()) return false;
    }
    inputs_.clear();
    input_views_.clear();
    if (py::len(written_gradients_)) written_gradients_ = py::list();
    if (!arguments_.match(arguments.ptr(), inputs_, input_views_)) return false;
    // A list among the arguments may change while the program runs.
    for (PyObject* input : inputs_) held_.push_back(py::reinterpret_borrow<py::object>(input));
    for (const auto& [input, first, between] : shared_inputs_)
      if (input_views_[input].as<char>() != input_views_[first].as<char>() + between) return false;
    static Interned unchanged("unchanged");
    if (!watch_.is_none() && owned(PyObject_CallMethodNoArgs(watch_.ptr(), unchanged)).ptr() != Py_True)
      return false;
    for (const auto& [optimizer, params] : optimizers_)
      if (!has_parameters(optimizer, params)) return false;
    static Interned grad("grad");
    for (const py::object& param : absent_)
      if (!owned(PyObject_GetAttr(param.ptr(), grad)).is_none()) return false;
    return memory_.find(input_views_, written_gradients_);
  }

  void bind() {
    made_.clear();
    for (const py::object& allocate : outputs_) made_.push_back(owned(PyObject_CallNoArgs(allocate.ptr())));
    memory_.bind(made_);
    instructions_.bind(memory_);
  }

  // Before anything is written: it must be done even if an exception follows, e.g. from a signal handler.
  void count_versions() const {
    static TorchAttribute increment_version("torch.autograd.graph", "increment_version");
    if (py::len(written_)) owned(PyObject_CallOneArg(increment_version, written_.ptr()));
    if (py::len(written_gradients_)) owned(PyObject_CallOneArg(increment_version, written_gradients_.ptr()));
    for (const size_t input : written_inputs_) owned(PyObject_CallOneArg(increment_version, inputs_[input]));
  }

  void execute(const Node& node) {
    if (node.kind == Node::Kind::run) return instructions_.execute(node.run);
    if (node.kind == Node::Kind::optimizer && step(node)) return;
    if (!node.takes_tensors) {
      owned(PyObject_CallNoArgs(node.function.ptr()));
      return;
    }
    py::list inputs, outputs;
    for (PyObject* input : inputs_) inputs.append(py::handle(input));
    for (const py::object& output : made_) outputs.append(output);
    node.function(inputs, outputs);
  }

  bool step(const Node& node) {
    gradients_.clear();
    for (const auto& [param, operand] : node.gradients)
      gradients_.emplace_back(param.ptr(), memory_.at(operand));
    return take_step(node.rule, node.optimizer, gradients_, match_layout_);
  }

  void settle_gradients() const {
    static Interned grad("grad");
    for (const py::object& param : cleared_)
      if (!owned(PyObject_GetAttr(param.ptr(), grad)).is_none()) py::setattr(param, "grad", py::none());
    for (const auto& [param, output] : kept_)
      if (PyObject_SetAttr(param.ptr(), grad, made_[output].ptr()) != 0) throw py::error_already_set();
  }

  py::object make_result() const {
    if (py::isinstance<py::int_>(result_)) return made_[result_.cast<size_t>()];
    py::list inputs, outputs;
    for (PyObject* input : inputs_) inputs.append(py::handle(input));
    for (const py::object& output : made_) outputs.append(output);
    return result_(inputs, outputs);
  }

  void let_go() {
    made_.clear();
    inputs_.clear();
    held_.clear();
    if (py::len(written_gradients_)) written_gradients_ = py::list();
  }

  // Releases what belongs to one call, however it ends.
  struct Running {
    explicit Running(Program& program) : program(program) {
      program.running_ = true;
      program.thread_ = PyThread_get_thread_ident();
    }
    ~Running() {
      program.let_go();
      program.running_ = false;
    }
    Program& program;
  };

  std::vector<std::pair<py::object, py::object>> states_;
  py::object watch_;
  Arguments arguments_;
  std::vector<py::object> outputs_, absent_, cleared_;
  std::vector<std::pair<py::object, size_t>> kept_;
  py::list written_, written_gradients_;
  std::vector<size_t> written_inputs_;
  std::vector<std::tuple<size_t, size_t, int64_t>> shared_inputs_;
  std::vector<std::pair<py::object, py::list>> optimizers_;
  py::object result_;
  py::function match_layout_;

  ProgramMemory memory_;
  ProgramInstructions instructions_;
  std::vector<Node> nodes_;

  // Of one call; kept so that the next one need not allocate.
  bool running_ = false;
  unsigned long thread_ = PyThread_get_thread_ident();
  int64_t runs_ = 0;
  std::vector<PyObject*> inputs_;
  std::vector<py::object> held_;  // the same, kept alive
  std::vector<TensorView> input_views_;
  std::vector<py::object> made_;
  std::vector<std::pair<PyObject*, const void*>> gradients_;
};

}  // namespace

void register_program(py::module_& m) {
  py::class_<Program> type(m, "Program", collectable<Program>());
  define_quick<Program, 1, &Program::run>(type, "run",
                                          "run(self: fastnn._cpu.Program, arg0: tuple) -> object");
  type.def(py::init<std::vector<std::pair<py::object, py::object>>, py::object, const py::tuple&,
                    const py::list&, std::vector<py::object>, const py::list&, std::vector<py::object>,
                    std::vector<py::object>, std::vector<std::pair<py::object, size_t>>, py::list,
                    std::vector<size_t>, std::vector<std::tuple<size_t, size_t, int64_t>>,
                    std::vector<std::pair<py::object, py::list>>, py::object, py::function>())
      .def_property_readonly("running", &Program::running)
      .def_property_readonly("runs", &Program::runs)
      .def_property_readonly("thread", &Program::thread)
      .def("run_batches",
           [](Program& program, const py::tuple& arguments,
              const std::vector<std::pair<TensorView, TensorView>>& gathered, const TensorView& rows,
              const TensorView& losses, const py::list& groups, const std::optional<TensorView>& rates) {
             PyObject* const call[] = {arguments.ptr()};
             return run_batches([&] { return program.run(call); }, gathered, rows, losses, groups, rates);
           });
}

}  // namespace fastnn
