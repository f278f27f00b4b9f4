// Arguments of a call of TrainStep besides model and optimizer: input, target and the loss's options.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>

#include "core/scratch.h"
#include "core/tensor_view.h"
#include "ops/train_step/train_step.h"

namespace fastnn {

constexpr const char* kTrainStep = "TrainStep";  // the name in errors

// The batches of a call: a single one, or those of a data set, each with the next `size` of the named rows.
class TrainStepBatches {
 public:
  // `losses` is written, one for each step. `options` are the LossOptions of step/plan.py. `memory` holds
  // copies of a batch.
  TrainStepBatches(pybind11::object input, pybind11::object target, const TensorView& losses,
                   pybind11::tuple options, ScratchBuffer& memory)
      : input_(std::move(input)),
        target_(std::move(target)),
        losses_(losses),
        options_(std::move(options)),
        memory_(memory) {}

  // Make input and target a data set. `rows` (steps * size); `rates` (steps), or null: the learning rate of
  // each step.
  void set_rows(const int64_t* rows, const double* rates, int64_t size, int64_t steps) {
    rows_ = rows;
    rates_ = rates;
    size_ = size;
    steps_ = steps;
  }

  // Check and fill in what the first layer and the loss read, of the first batch; throw NotCovered.
  // `flatten`: the input's dimensions after the first are merged.
  void read_input(bool flatten, TrainStepArgs& args) const;
  void read_target(const TensorView& last_weight, TrainStepArgs& args);

  // Advances to the batch of step `step`. False if a row or a class index is out of range; throws if it is
  // the only batch. Checked indices are copied, because another thread may write to them. Needs no GIL.
  bool take(int64_t step, TrainStepArgs& args, CrossEntropyTotals& totals) const;

  int64_t steps() const { return steps_; }
  const double* rates() const { return rates_; }

 private:
  PyObject* option(Py_ssize_t place) const;
  void read_classes(const TensorView& output, TrainStepArgs& args);
  void read_values(const TensorView& output, TrainStepArgs& args);
  [[noreturn]] void refuse_shape(const TensorView& output) const;
  static bool read_repeated(PyObject* object, int64_t classes, const TrainStepArgs& args, TensorView& weight);
  static void repeat(const TensorView& weight, void* to);
  void read_rows_of_target();
  // Makes room for the rows of a batch, its target, and either kind of weights.
  void lay_out(int64_t target_values, int64_t weight_values);
  bool take_rows(int64_t step, TrainStepArgs& args) const;
  template <class Index>
  void copy_classes(const TrainStepArgs& args) const;

  pybind11::object input_, target_;
  TensorView losses_;
  pybind11::tuple options_;
  const int64_t* rows_ = nullptr;
  const double* rates_ = nullptr;
  int64_t size_ = 0, steps_ = 1;
  TensorView target_view_;
  bool has_values_ = false;  // of the target; otherwise it has class indices
  TensorView weights_[2];    // of elements, and of positive ones; without data if there are none

  ScratchBuffer& memory_;
  int64_t* own_rows_ = nullptr;  // all in `memory_`
  void* own_target_ = nullptr;
  void* own_weights_[2] = {};
};

}  // namespace fastnn
