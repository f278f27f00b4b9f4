// What the kernels ask of the table of instruction sets.
#include "gemm/pair_microkernel.h"

namespace fastnn {

PairMicrokernels pair_microkernels() { return nullptr; }

}  // namespace fastnn
