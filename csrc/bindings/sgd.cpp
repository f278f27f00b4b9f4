// sgd_step: one step of SGD on a parameter group.
#include "bindings/sgd_step.h"

namespace fastnn {

void register_sgd(pybind11::module_& m) { m.def("sgd_step", &optimizer_step<SgdStep>); }

}  // namespace fastnn
