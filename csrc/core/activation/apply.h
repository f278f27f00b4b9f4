// Activations of many values, chosen at run time: for the kernels that do not hold them in registers, so that
// the long ones are compiled once.
#pragma once

#include "core/activation/activation.h"
#include "core/simd.h"

namespace fastnn::FASTNN_ISA {

// For float and double:
//   z = act(z)
//   dy = act'(saved) dy, with `saved` as activation_gradient() takes it
// for `count` values.
template <class A>
void apply_activation(Activation activation, A* z, int64_t count);
template <class A>
void apply_gradient(Activation activation, A* dy, const A* saved, int64_t count);

}  // namespace fastnn::FASTNN_ISA
