// The activations that a linear layer can end in.
//   relu       max(z, 0)                    sigmoid  1 / (1 + e^-z)        tanh  tanh(z)
//   gelu       z P(Z <= z), Z standard normal
//   gelu_tanh  z / 2 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3)))
//   silu       z / (1 + e^-z)
#pragma once

namespace fastnn {

enum class Activation : int { none, relu, sigmoid, tanh, gelu, gelu_tanh, silu };

// Whether the gradient is a function of z, the input of the activation, rather than of y = act(z).
constexpr bool from_preactivation(Activation activation) {
  return activation == Activation::gelu || activation == Activation::gelu_tanh ||
         activation == Activation::silu;
}

}  // namespace fastnn
