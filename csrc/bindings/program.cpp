// Captured steps.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/cpu_dispatch.h"

namespace py = pybind11;

namespace fastnn {

namespace {

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
                                static_cast<int64_t>(code.size())};
  const KernelCall call(INT32_MAX);
  run(instruction);
}

}  // namespace

void register_program(py::module_& m) {
  m.def("run_instruction", &run_instruction, py::arg("name"), py::arg("operands"),
        py::arg("numbers") = std::vector<double>(), py::arg("code") = std::vector<int64_t>());
}

}  // namespace fastnn
