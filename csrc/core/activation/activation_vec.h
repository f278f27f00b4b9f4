// Activations of vectors, for the kernels of the CPU.
#pragma once

#include "core/vec_special.h"

// Its templates call functions of vectors, which must be declared first.
#include "core/activation/activation_math.h"

namespace fastnn::FASTNN_ISA {

template <>
struct LaneOf<Vec<float>> {
  using type = float;
};
template <>
struct LaneOf<Vec<double>> {
  using type = double;
};

}  // namespace fastnn::FASTNN_ISA
