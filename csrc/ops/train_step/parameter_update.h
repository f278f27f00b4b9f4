// How one parameter is updated in a training step: the list of supported optimizers.
#pragma once

#include "ops/adagrad/adagrad.h"
#include "ops/adam/adam.h"
#include "ops/rmsprop/rmsprop.h"
#include "ops/sgd/sgd.h"

namespace fastnn {

template <class Tensor, class Options>
struct UpdateBy {
  Tensor tensor;
  const Options* options;
};

// `by` says which member of the union is active; visit_update() calls with it. Not a std::variant: kernels
// that are compiled once for each instruction set use no templates of the standard library, whose code the
// linker would share among them.
struct ParameterUpdate {
  enum class By : int { none, adam, sgd, rmsprop, adagrad };

  ParameterUpdate() : by(By::none), adam{} {}
  ParameterUpdate(const AdamTensor& t, const AdamOptions& o) : by(By::adam), adam{t, &o} {}
  ParameterUpdate(const SgdTensor& t, const SgdOptions& o) : by(By::sgd), sgd{t, &o} {}
  ParameterUpdate(const RmspropTensor& t, const RmspropOptions& o) : by(By::rmsprop), rmsprop{t, &o} {}
  ParameterUpdate(const AdagradTensor& t, const AdagradOptions& o) : by(By::adagrad), adagrad{t, &o} {}

  By by;
  union {
    UpdateBy<AdamTensor, AdamOptions> adam;
    UpdateBy<SgdTensor, SgdOptions> sgd;
    UpdateBy<RmspropTensor, RmspropOptions> rmsprop;
    UpdateBy<AdagradTensor, AdagradOptions> adagrad;
  };
};

namespace FASTNN_ISA {

// Calls visit(tensor, options) with the optimizer's data for the parameter, unless there is none.
// `Update` is ParameterUpdate, const or not.
template <class Update, class Visit>
void visit_update(Update& update, const Visit& visit) {
  using By = ParameterUpdate::By;
  switch (update.by) {
    case By::none:
      return;
    case By::adam:
      return visit(update.adam.tensor, *update.adam.options);
    case By::sgd:
      return visit(update.sgd.tensor, *update.sgd.options);
    case By::rmsprop:
      return visit(update.rmsprop.tensor, *update.rmsprop.options);
    case By::adagrad:
      return visit(update.adagrad.tensor, *update.adagrad.options);
  }
}

}  // namespace FASTNN_ISA

}  // namespace fastnn
