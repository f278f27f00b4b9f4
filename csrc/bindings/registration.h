// Each op adds its functions to the module in a file of its own.
#pragma once

#include <pybind11/pybind11.h>

namespace fastnn {

void register_adagrad(pybind11::module_& m);
void register_adam(pybind11::module_& m);
void register_clip(pybind11::module_& m);
void register_cross_entropy(pybind11::module_& m);
void register_gram(pybind11::module_& m);
void register_linear(pybind11::module_& m);
void register_linear_cross_entropy(pybind11::module_& m);
void register_mlp(pybind11::module_& m);
void register_plain_call(pybind11::module_& m);
void register_probe(pybind11::module_& m);
void register_relu(pybind11::module_& m);
void register_rmsprop(pybind11::module_& m);
void register_sgd(pybind11::module_& m);
void register_train_step(pybind11::module_& m);
void register_vec_math(pybind11::module_& m);
void register_watch(pybind11::module_& m);

// Releases the GIL for the life of the object where the work is worth it: handing the lock over costs more
// than a kernel of a few microseconds.
class ReleaseGil {
 public:
  explicit ReleaseGil(int64_t operations) {
    if (operations >= kWorthReleasing) state_ = PyEval_SaveThread();
  }
  ~ReleaseGil() {
    if (state_) PyEval_RestoreThread(state_);
  }
  ReleaseGil(const ReleaseGil&) = delete;
  ReleaseGil& operator=(const ReleaseGil&) = delete;

 private:
  // Elements touched or multiply-adds done in very roughly five microseconds.
  static constexpr int64_t kWorthReleasing = 32768;
  PyThreadState* state_ = nullptr;
};

}  // namespace fastnn
