// Each op adds its functions to the module in a file of its own.
#pragma once

#include <pybind11/pybind11.h>

#include "core/oversubscription.h"

namespace fastnn {

void register_adagrad(pybind11::module_& m);
void register_adam(pybind11::module_& m);
void register_bernoulli(pybind11::module_& m);
void register_clip(pybind11::module_& m);
void register_cross_entropy(pybind11::module_& m);
void register_gram(pybind11::module_& m);
void register_layer_reader(pybind11::module_& m);
void register_linear(pybind11::module_& m);
void register_linear_cross_entropy(pybind11::module_& m);
void register_mlp(pybind11::module_& m);
void register_plain_call(pybind11::module_& m);
void register_polyak(pybind11::module_& m);
void register_probe(pybind11::module_& m);
void register_program(pybind11::module_& m);
void register_relu(pybind11::module_& m);
void register_rmsprop(pybind11::module_& m);
void register_sgd(pybind11::module_& m);
void register_small_layers(pybind11::module_& m);
void register_train_step(pybind11::module_& m);
void register_watch(pybind11::module_& m);

// Into the module `testing`.
void register_instructions(pybind11::module_& testing);
void register_late_probe(pybind11::module_& testing);
void register_vec_math(pybind11::module_& testing);

// Around a kernel. Releases the GIL if the work is worth it: handing over the lock costs more than a kernel
// of a few microseconds.
class KernelCall {
 public:
  // `operations`: elements touched, or multiply-adds / 16, of each of `pieces`.
  explicit KernelCall(int64_t operations, int64_t pieces = 1) : work_(operations) {
    if (operations >= kWorthReleasing || operations * pieces >= kWorthReleasing) state_ = PyEval_SaveThread();
  }
  ~KernelCall() {
    if (state_) PyEval_RestoreThread(state_);
  }
  KernelCall(const KernelCall&) = delete;
  KernelCall& operator=(const KernelCall&) = delete;

 private:
  // Very roughly five microseconds.
  static constexpr int64_t kWorthReleasing = 32768;
  const Work work_;
  PyThreadState* state_ = nullptr;
};

}  // namespace fastnn
