#include "bindings/program_instructions.h"

#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/arguments.h"
#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "dispatch/cpu_dispatch.h"

namespace py = pybind11;

namespace fastnn {

namespace {

// Multiply-adds of a run of instructions below which a second thread costs more than it saves, and how many
// of them an element of an instruction other than a product is worth.
constexpr int64_t kThreadGrain = int64_t{1} << 20;
constexpr int64_t kElementWorth = 16;

InstructionKernel found(const std::string& name) {
  const InstructionKernel run = cpu_kernels().program.find(name.c_str());
  check<std::invalid_argument>(run != nullptr, "no instruction ", name);
  return run;
}

}  // namespace

void ProgramInstructions::add(const py::tuple& from, ProgramMemory& memory, Run& run) {
  Parsed parsed;
  parsed.name = from[1].cast<std::string>();
  parsed.run = found(parsed.name);
  for (const py::handle entry : from[2]) {
    const auto operand = py::reinterpret_borrow<py::tuple>(entry);
    const TensorView view = described_view(operand[2].cast<int64_t>(), operand[3], operand[4]);
    parsed.operands.push_back(memory.read_operand(operand, view));
    parsed.views.push_back(view);
  }
  parsed.numbers = from[3].cast<std::vector<double>>();
  parsed.code = from[4].cast<std::vector<int64_t>>();
  parsed.results = from[5].cast<size_t>();
  parsed.error = from[6];
  run.threads_worth += work_of(parsed);
  parsed_.push_back(std::move(parsed));
  run.end = parsed_.size();
}

// Multiply-adds, roughly. The first input of a product is (..., M, K), its result (..., M, N).
int64_t ProgramInstructions::work_of(const Parsed& parsed) {
  int64_t elements = 0;
  for (const TensorView& view : parsed.views) elements += view.numel();
  int64_t work = elements * kElementWorth;
  if (parsed.name == "product") {
    const TensorView& a = parsed.views[parsed.results];
    work += parsed.views[0].numel() * a.shape[a.ndim - 1];
  }
  return work;
}

void ProgramInstructions::lay_out(const ProgramMemory& memory) {
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
      views_.back().data = memory.at(operand);
      if (memory.moves(operand)) moving_.emplace_back(views_.size() - 1, operand);
    }
    numbers_.insert(numbers_.end(), parsed.numbers.begin(), parsed.numbers.end());
    codes_.insert(codes_.end(), parsed.code.begin(), parsed.code.end());
    if (!parsed.error.is_none())
      instruction.bad_index = instruction.operands[parsed.results - 1].as<const int64_t>();
    instructions_.push_back(instruction);
  }
}

void ProgramInstructions::bind(const ProgramMemory& memory) {
  for (const auto& [view, operand] : moving_) views_[view].data = memory.at(operand);
}

void ProgramInstructions::execute(const Run& run) const {
  const int64_t count = static_cast<int64_t>(run.end - run.begin);
  int64_t done;
  {
    const KernelCall call(run.threads_worth / kElementWorth);
    done = cpu_kernels().program.run(instructions_.data() + run.begin, count,
                                     std::max(run.threads_worth / kThreadGrain, int64_t{1}));
  }
  if (done == count) return;
  const size_t at = run.begin + static_cast<size_t>(done);
  const int64_t flag = *instructions_[at].bad_index;
  const py::object error = parsed_[at].error(flag == INT64_MIN ? kAllWell : flag);
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
  throw py::error_already_set();
}

int ProgramInstructions::traverse(visitproc visit, void* arg) const {
  for (const Parsed& parsed : parsed_) Py_VISIT(parsed.error.ptr());
  return 0;
}

namespace {

// One instruction on torch's tensors: for tests of single kernels.
void run_instruction(const std::string& name, const std::vector<TensorView>& operands,
                     const std::vector<double>& numbers, const std::vector<int64_t>& code) {
  const InstructionKernel run = found(name);
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

}  // namespace fastnn
