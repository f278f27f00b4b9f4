// fastnn._cpu: the CPU kernels as Python functions that write into tensors the caller allocated.
#include "bindings/registration.h"
#include "core/parallel.h"
#include "dispatch/cpu_dispatch.h"

namespace py = pybind11;
using namespace fastnn;

PYBIND11_MODULE(_cpu, m) {
  select_cpu_kernels("");
  m.attr("isa") = isa_name(selected_isa());
  m.attr("best_isa") = m.attr("isa");
  m.attr("compiler") = FASTNN_COMPILER;
  m.attr("is_intel") = is_intel();
  m.def("max_threads", &max_threads);
  // FASTNN_CPU_ISA is applied through this, and tests run every variant in one process with it. It must not
  // be called while a kernel runs.
  m.def("select_isa", [m](const char* name) mutable {
    select_cpu_kernels(name);
    m.attr("isa") = isa_name(selected_isa());
  });
  py::module_ testing = m.def_submodule("testing", "What only tests use.");
  testing.def("notice_oversubscription", &notice_oversubscription);
  testing.def("emulate_pairs", &emulate_pairs);  // until the next select_isa; not while a kernel runs
  register_instructions(testing);
  register_late_probe(testing);
  register_vec_math(testing);
  register_adagrad(m);
  register_adam(m);
  register_bernoulli(m);
  register_clip(m);
  register_cross_entropy(m);
  register_gram(m);
  register_layer_reader(m);
  register_linear(m);
  register_linear_cross_entropy(m);
  register_mlp(m);
  register_plain_call(m);
  register_polyak(m);
  register_probe(m);
  register_program(m);
  register_relu(m);
  register_rmsprop(m);
  register_sgd(m);
  register_small_layers(m);
  register_train_step(m);
  register_watch(m);
}
