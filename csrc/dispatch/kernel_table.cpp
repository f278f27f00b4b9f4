// Compiled once per instruction set: the table of this variant.
#include "dispatch/cpu_dispatch.h"

namespace fastnn::FASTNN_ISA {

CpuKernels kernel_table() {
  return {
      adagrad_kernels(),       adam_kernels(),    bernoulli_kernels(), clip_kernels(),
      cross_entropy_kernels(), gram_kernels(),    linear_kernels(),    linear_cross_entropy_kernels(),
      pair_microkernel_for,    polyak_kernels(),  probe_kernels(),     program_kernels(),
      relu_kernels(),          rmsprop_kernels(), sgd_kernels(),       train_step_kernels(),
      vec_math_kernels(),
  };
}

}  // namespace fastnn::FASTNN_ISA
