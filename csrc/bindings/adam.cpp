// adam_step: one step of Adam or AdamW on a parameter group.
#include "bindings/adam_step.h"

namespace fastnn {

void register_adam(pybind11::module_& m) { m.def("adam_step", &optimizer_step<AdamStep>); }

}  // namespace fastnn
