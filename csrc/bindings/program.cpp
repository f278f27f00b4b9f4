// A captured step, replayed: python/fastnn/capture/ records it and lays it out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/collectable.h"
#include "bindings/optimizer_group.h"
#include "bindings/program_batches.h"
#include "bindings/program_step.h"
#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "dispatch/cpu_dispatch.h"

namespace py = pybind11;

namespace fastnn {

namespace {

// Multiply-adds of a run of instructions below which a second thread costs more than it saves, and what an
// element of an instruction that is no product is worth in them.
constexpr int64_t kThreadGrain = int64_t{1} << 20;
constexpr int64_t kElementWorth = 16;

// Memory that instructions work on.
struct Buffer {
  enum class Kind { arena, input, external, gradient, output };

  Kind kind{};
  size_t index = 0;    // of an input or an output
  py::object tensor;   // of the arena, of external memory; the parameter of a gradient
  TensorView view;     // what the tensor looks like, for external memory and gradients
  bool requires_grad;  // of external memory
  int64_t first;       // byte of the memory at which the tensor begins
  int64_t bytes;
  bool written;
  bool only_here = false;  // instructions reach memory beyond the tensor's own: it must lie where it lay

  char* base = nullptr;  // in the present call
};

struct Operand {
  size_t buffer;
  int64_t offset;  // bytes
};

// A value of `kind` there is exactly one of: instructions in a row, a function of Python, or an optimizer.
struct Node {
  enum class Kind { run, python, optimizer };

  Kind kind{};
  size_t begin = 0, end = 0;  // of the instructions
  int64_t threads_worth = 0;
  bool takes_tensors = true;  // of the function: those among the arguments, and the outputs
  py::object function;        // also what takes the step where the optimizer cannot be natively
  py::object optimizer;
  std::string rule;
  std::vector<std::pair<py::object, Operand>> gradients;
};

class Program {
 public:
  // states: functions without arguments, each with the object that it returned at the recording.
  // arguments: the specification of (args, kwargs), see arguments.h.
  // buffers: (kind, index, tensor, (dtype, shape, strides), requires_grad, first, bytes, written).
  // outputs: functions that allocate them. nodes: ("native", name, operands, numbers, code, results, error),
  // ("python", function, takes_tensors), ("optimizer", rule, optimizer, [(parameter, buffer, offset)],
  // function). absent: parameters that must have no gradient; cleared: those that have none after a call;
  // kept: (parameter, output) of those that get one. written: tensors whose versions are counted, and
  // written_inputs the numbers of those among the arguments. shared_inputs: arguments that lie so many bytes
  // after an earlier one in one memory. optimizers: each with all of its parameters.
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
    for (const py::handle buffer : buffers) add_buffer(py::reinterpret_borrow<py::tuple>(buffer));
    for (const py::handle node : nodes) add_node(py::reinterpret_borrow<py::tuple>(node));
    lay_out();
  }

  // What the function returns; NotImplemented, with nothing done, where the call is not what was recorded.
  py::object run(const py::tuple& arguments) {
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

  // Calls that have been taken.
  int64_t runs() const { return runs_; }

  // Whether a call is on its way, in another thread or further up the stack.
  bool running() const { return running_; }

  // The thread of the last call, before one that of the recording, as Python numbers them.
  unsigned long thread() const { return thread_; }

  int traverse(visitproc visit, void* arg) const {
    for (const auto& [function, value] : states_) {
      Py_VISIT(function.ptr());
      Py_VISIT(value.ptr());
    }
    Py_VISIT(watch_.ptr());
    if (const int stop = arguments_.traverse(visit, arg)) return stop;
    for (const Buffer& buffer : buffers_) Py_VISIT(buffer.tensor.ptr());
    for (const Node& node : nodes_) {
      Py_VISIT(node.function.ptr());
      Py_VISIT(node.optimizer.ptr());
      for (const auto& gradient : node.gradients) Py_VISIT(gradient.first.ptr());
    }
    for (const auto* objects : {&outputs_, &absent_, &cleared_})
      for (const py::object& object : *objects) Py_VISIT(object.ptr());
    for (const auto& entry : kept_) Py_VISIT(entry.first.ptr());
    for (const Parsed& parsed : parsed_) Py_VISIT(parsed.error.ptr());
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
    parsed_.clear();
    buffers_.clear();
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
  // ---- what Python said ----

  void add_buffer(const py::tuple& from) {
    static const std::pair<const char*, Buffer::Kind> kinds[] = {{"arena", Buffer::Kind::arena},
                                                                 {"input", Buffer::Kind::input},
                                                                 {"external", Buffer::Kind::external},
                                                                 {"gradient", Buffer::Kind::gradient},
                                                                 {"output", Buffer::Kind::output}};
    Buffer buffer;
    const auto name = from[0].cast<std::string>();
    for (const auto& [text, kind] : kinds)
      if (name == text) buffer.kind = kind;
    buffer.index = from[1].cast<size_t>();
    buffer.tensor = from[2];
    const auto description = from[3].cast<py::tuple>();
    buffer.view = described_view(description[0].cast<int64_t>(), description[1], description[2]);
    buffer.requires_grad = from[4].cast<bool>();
    buffer.first = from[5].cast<int64_t>();
    buffer.bytes = from[6].cast<int64_t>();
    buffer.written = from[7].cast<bool>();
    if (buffer.kind == Buffer::Kind::arena || buffer.kind == Buffer::Kind::external)
      buffer.base = memory_of(read_plain(buffer.tensor.ptr()), buffer);
    buffers_.push_back(std::move(buffer));
  }

  static char* memory_of(const TensorView& view, const Buffer& buffer) {
    return static_cast<char*>(view.data) - buffer.first;
  }

  Operand read_operand(const py::tuple& from, const TensorView& view) {
    const Operand operand{from[0].cast<size_t>(), from[1].cast<int64_t>()};
    check(operand.buffer < buffers_.size(), kProgram, ": no buffer ", operand.buffer);
    Buffer& buffer = buffers_[operand.buffer];
    if (view.numel() == 0) return operand;
    const int64_t end = operand.offset + extent(view);
    check(operand.offset >= 0 && end <= buffer.bytes, kProgram, ": an operand ends at byte ", end, " of ",
          buffer.bytes);
    if (buffer.kind != Buffer::Kind::arena && buffer.kind != Buffer::Kind::output &&
        (operand.offset < buffer.first || end > buffer.first + extent(buffer.view)))
      buffer.only_here = true;
    return operand;
  }

  // Bytes from the first element of a tensor to the end of its last.
  static int64_t extent(const TensorView& view) {
    int64_t last = 0;
    for (int d = 0; d < view.ndim; ++d) last += (view.shape[d] - 1) * view.strides[d];
    return view.numel() ? (last + 1) * dtype_size(view.dtype) : 0;
  }

  void add_node(const py::tuple& from) {
    const auto kind = from[0].cast<std::string>();
    if (kind == "native") return add_instruction(from);
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
        node.gradients.emplace_back(gradient[0], read_operand(py::make_tuple(gradient[1], gradient[2]), p));
      }
      node.function = from[4];
    }
    nodes_.push_back(std::move(node));
  }

  void add_instruction(const py::tuple& from) {
    const auto name = from[1].cast<std::string>();
    Parsed parsed;
    parsed.run = cpu_kernels().program.find(name.c_str());
    check<std::invalid_argument>(parsed.run != nullptr, "no instruction ", name);
    for (const py::handle entry : from[2]) {
      const auto operand = py::reinterpret_borrow<py::tuple>(entry);
      const TensorView view = described_view(operand[2].cast<int64_t>(), operand[3], operand[4]);
      parsed.operands.push_back(read_operand(operand, view));
      parsed.views.push_back(view);
    }
    parsed.numbers = from[3].cast<std::vector<double>>();
    parsed.code = from[4].cast<std::vector<int64_t>>();
    parsed.results = from[5].cast<size_t>();
    parsed.error = from[6];
    parsed.name = name;
    if (nodes_.empty() || nodes_.back().kind != Node::Kind::run) {
      Node node;
      node.kind = Node::Kind::run;
      node.begin = parsed_.size();
      nodes_.push_back(std::move(node));
    }
    nodes_.back().end = parsed_.size() + 1;
    nodes_.back().threads_worth += work_of(parsed);
    parsed_.push_back(std::move(parsed));
  }

  // Multiply-adds, roughly. The first input of a product is (..., M, K), its result (..., M, N).
  struct Parsed;
  static int64_t work_of(const Parsed& parsed) {
    int64_t elements = 0;
    for (const TensorView& view : parsed.views) elements += view.numel();
    int64_t work = elements * kElementWorth;
    if (parsed.name == "product") {
      const TensorView& a = parsed.views[parsed.results];
      work += parsed.views[0].numel() * a.shape[a.ndim - 1];
    }
    return work;
  }

  // Puts what the instructions point to where it will stay.
  void lay_out() {
    size_t operands = 0, numbers = 0, codes = 0;
    for (const Parsed& parsed : parsed_) {
      operands += parsed.views.size();
      numbers += parsed.numbers.size();
      codes += parsed.code.size();
    }
    views_.reserve(operands);
    numbers_.reserve(numbers);
    codes_.reserve(codes);
    for (const Parsed& parsed : parsed_) {
      Instruction instruction{parsed.run,
                              views_.data() + views_.size(),
                              numbers_.data() + numbers_.size(),
                              codes_.data() + codes_.size(),
                              static_cast<int64_t>(parsed.views.size()),
                              static_cast<int64_t>(parsed.numbers.size()),
                              static_cast<int64_t>(parsed.code.size()),
                              nullptr};
      for (size_t i = 0; i < parsed.views.size(); ++i) {
        views_.push_back(parsed.views[i]);
        const Operand& operand = parsed.operands[i];
        Buffer& buffer = buffers_[operand.buffer];
        views_.back().data = buffer.base + operand.offset;
        // The memory of the others is another in each call.
        if (buffer.kind != Buffer::Kind::arena) moving_.emplace_back(views_.size() - 1, operand);
      }
      numbers_.insert(numbers_.end(), parsed.numbers.begin(), parsed.numbers.end());
      codes_.insert(codes_.end(), parsed.code.begin(), parsed.code.end());
      if (!parsed.error.is_none())
        instruction.bad_index = instruction.operands[parsed.results - 1].as<const int64_t>();
      instructions_.push_back(instruction);
    }
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
    for (Buffer& buffer : buffers_)
      if (!find_memory(buffer)) return false;
    return !inputs_overlap();
  }

  bool find_memory(Buffer& buffer) {
    static Interned grad("grad");
    if (buffer.kind == Buffer::Kind::arena || buffer.kind == Buffer::Kind::output) return true;
    TensorView view;
    if (buffer.kind == Buffer::Kind::input) {
      view = input_views_[buffer.index];
    } else {
      try {
        if (buffer.kind == Buffer::Kind::gradient) {
          const py::object gradient = owned(PyObject_GetAttr(buffer.tensor.ptr(), grad));
          if (gradient.is_none() || requires_grad(gradient.ptr())) return false;
          view = read_plain(gradient.ptr());
          check_not_negated(gradient.ptr());
          if (buffer.written) written_gradients_.append(gradient);
        } else {
          view = read_plain(buffer.tensor.ptr());
          if (requires_grad(buffer.tensor.ptr()) != buffer.requires_grad) return false;
        }
      } catch (const NotCovered&) {
        return false;
      }
      if (!same_description(view, buffer.view)) return false;
    }
    char* const base = memory_of(view, buffer);
    if (buffer.only_here && base != buffer.base) return false;
    buffer.base = base;
    return true;
  }

  // Whether an argument lies where the program writes something else.
  bool inputs_overlap() const {
    for (const Buffer& input : buffers_) {
      if (input.kind != Buffer::Kind::input) continue;
      const char* const begin = input.base + input.first;
      const char* const end = begin + extent(input_views_[input.index]);
      for (const Buffer& other : buffers_) {
        if (&other == &input || !(other.written || input.written) || other.kind == Buffer::Kind::output)
          continue;
        const char* const at = other.base + (other.kind == Buffer::Kind::arena ? 0 : other.first);
        const int64_t bytes = other.kind == Buffer::Kind::arena   ? other.bytes
                              : other.kind == Buffer::Kind::input ? extent(input_views_[other.index])
                                                                  : extent(other.view);
        if (begin < at + bytes && at < end) return true;
      }
    }
    return false;
  }

  void bind() {
    made_.clear();
    for (const py::object& allocate : outputs_) made_.push_back(owned(PyObject_CallNoArgs(allocate.ptr())));
    for (Buffer& buffer : buffers_)
      if (buffer.kind == Buffer::Kind::output)
        buffer.base = memory_of(read_plain(made_[buffer.index].ptr()), buffer);
    for (const auto& [view, operand] : moving_)
      views_[view].data = buffers_[operand.buffer].base + operand.offset;
  }

  // Before anything is written: an exception after this call, as from a signal's handler, must find it done.
  void count_versions() const {
    static TorchAttribute increment_version("torch.autograd.graph", "increment_version");
    if (py::len(written_)) owned(PyObject_CallOneArg(increment_version, written_.ptr()));
    if (py::len(written_gradients_)) owned(PyObject_CallOneArg(increment_version, written_gradients_.ptr()));
    for (const size_t input : written_inputs_) owned(PyObject_CallOneArg(increment_version, inputs_[input]));
  }

  void execute(const Node& node) {
    if (node.kind == Node::Kind::run) return run_instructions(node);
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

  void run_instructions(const Node& node) const {
    const int64_t count = static_cast<int64_t>(node.end - node.begin);
    int64_t done;
    {
      const KernelCall call(node.threads_worth / kElementWorth);
      done = cpu_kernels().program.run(instructions_.data() + node.begin, count,
                                       std::max(node.threads_worth / kThreadGrain, int64_t{1}));
    }
    if (done == count) return;
    const size_t at = node.begin + static_cast<size_t>(done);
    const int64_t flag = *instructions_[at].bad_index;
    const py::object error = parsed_[at].error(flag == INT64_MIN ? kAllWell : flag);
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
    throw py::error_already_set();
  }

  bool step(const Node& node) {
    gradients_.clear();
    for (const auto& [param, operand] : node.gradients)
      gradients_.emplace_back(param.ptr(), buffers_[operand.buffer].base + operand.offset);
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

  // Lets go of what belongs to one call, however that ends.
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

  struct Parsed {
    InstructionKernel run;
    std::string name;
    py::object error;  // makes what is raised for a bad index; or None
    size_t results;
    std::vector<Operand> operands;
    std::vector<TensorView> views;
    std::vector<double> numbers;
    std::vector<int64_t> code;
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

  std::vector<Buffer> buffers_;
  std::vector<Node> nodes_;
  std::vector<Parsed> parsed_;
  std::vector<Instruction> instructions_;
  std::vector<TensorView> views_;
  std::vector<double> numbers_;
  std::vector<int64_t> codes_;
  std::vector<std::pair<size_t, Operand>> moving_;  // views whose memory is another in each call

  // Of one call; kept so that the next one need not allocate.
  bool running_ = false;
  unsigned long thread_ = PyThread_get_thread_ident();
  int64_t runs_ = 0;
  std::vector<PyObject*> inputs_;
  std::vector<py::object> held_;  // the same, alive
  std::vector<TensorView> input_views_;
  std::vector<py::object> made_;
  std::vector<std::pair<PyObject*, const void*>> gradients_;
};

// One instruction on torch's tensors: for tests of the kernels by themselves.
void run_instruction(const std::string& name, const std::vector<TensorView>& operands,
                     const std::vector<double>& numbers, const std::vector<int64_t>& code) {
  const InstructionKernel run = cpu_kernels().program.find(name.c_str());
  check<std::invalid_argument>(run != nullptr, "no instruction ", name);
  const Instruction instruction{run,
                                operands.data(),
                                numbers.data(),
                                code.data(),
                                static_cast<int64_t>(operands.size()),
                                static_cast<int64_t>(numbers.size()),
                                static_cast<int64_t>(code.size()),
                                nullptr};
  const KernelCall call(INT32_MAX);
  run(instruction);
}

}  // namespace

void register_instructions(py::module_& testing) {
  testing.def("run_instruction", &run_instruction, py::arg("name"), py::arg("operands"),
              py::arg("numbers") = std::vector<double>(), py::arg("code") = std::vector<int64_t>());
}

void register_program(py::module_& m) {
  py::class_<Program>(m, "Program", collectable<Program>())
      .def(py::init<std::vector<std::pair<py::object, py::object>>, py::object, const py::tuple&,
                    const py::list&, std::vector<py::object>, const py::list&, std::vector<py::object>,
                    std::vector<py::object>, std::vector<std::pair<py::object, size_t>>, py::list,
                    std::vector<size_t>, std::vector<std::tuple<size_t, size_t, int64_t>>,
                    std::vector<std::pair<py::object, py::list>>, py::object, py::function>())
      .def_property_readonly("running", &Program::running)
      .def_property_readonly("runs", &Program::runs)
      .def_property_readonly("thread", &Program::thread)
      .def("run", &Program::run)
      .def("run_batches", [](Program& program, const py::tuple& arguments,
                             const std::vector<std::pair<TensorView, TensorView>>& gathered,
                             const TensorView& rows, const TensorView& losses, const py::list& groups,
                             const std::optional<TensorView>& rates) {
        return run_batches([&] { return program.run(arguments); }, gathered, rows, losses, groups, rates);
      });
}

}  // namespace fastnn
