// A chain of linear layers, each with or without ReLU, in one call forward and one backward.
//   forward   h_l = act_l(h_{l-1} W_l^T + b_l),  h_{-1} = x, y = h_{L-1}
//   backward  of each layer as in ops/linear/linear.h, from the last to the first; the gradients of hidden
//   outputs never
//             leave the call
#include <vector>

#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/cpu_dispatch.h"
#include "core/scratch.h"

namespace fastnn {

namespace {

using Tensors = std::vector<TensorView>;
using Optionals = std::vector<std::optional<TensorView>>;

void check_length(const char* name, size_t length, size_t layers) {
  check(length == layers, "mlp: ", length, " ", name, " for ", layers, " layers");
}

void check_weight(size_t layer, const TensorView& weight, const TensorView& input) {
  check_ndim("mlp", "weight", weight, 2);
  check_dtype("mlp", "weight", weight, input.dtype);
  check(input.shape[1] == weight.shape[1], "mlp: input of layer ", layer, " has K=", input.shape[1],
        ", weight expects ", weight.shape[1]);
}

int64_t multiply_adds(const TensorView& x, const Tensors& weights) {
  int64_t sum = 0;
  for (const TensorView& weight : weights) sum += x.shape[0] * weight.numel();
  return sum;
}

void forward(const TensorView& x, const Tensors& weights, const Optionals& biases,
             const std::vector<bool>& relu, const Tensors& outputs) {
  const size_t layers = weights.size();
  check_length("biases", biases.size(), layers);
  check_length("activations", relu.size(), layers);
  check_length("outputs", outputs.size(), layers);
  check_floating("mlp", "input", x);
  check_ndim("mlp", "input", x, 2);
  for (size_t l = 0; l < layers; ++l) {
    check_weight(l, weights[l], l ? outputs[l - 1] : x);
    if (biases[l]) check_vector("mlp", "bias", *biases[l], x.dtype, weights[l].shape[0]);
    check_matrix("mlp", "output", outputs[l], x.dtype, x.shape[0], weights[l].shape[0]);
    check_contiguous("mlp", "output", outputs[l]);
  }
  const ReleaseGil released(multiply_adds(x, weights) / 16);
  for (size_t l = 0; l < layers; ++l)
    cpu_kernels().linear.forward(l ? outputs[l - 1] : x, weights[l], pointer(biases[l]), relu[l], outputs[l]);
}

// outputs[l] is the output of layer l; the last one is needed only if it has ReLU.
void backward(const TensorView& dy, const TensorView& x, const Tensors& weights, const Optionals& outputs,
              const std::vector<bool>& relu, const std::optional<TensorView>& dx, const Optionals& dweights,
              const Optionals& dbiases) {
  const size_t layers = weights.size();
  check_length("outputs", outputs.size(), layers);
  check_length("activations", relu.size(), layers);
  check_length("weight gradients", dweights.size(), layers);
  check_length("bias gradients", dbiases.size(), layers);
  check_floating("mlp", "input", x);
  check_ndim("mlp", "input", x, 2);
  check(layers > 0, "mlp: no layers");
  const int64_t m = x.shape[0];
  int64_t widest = 0;
  size_t lowest = layers;  // the first layer that has a gradient to give
  for (size_t l = layers; l-- > 0;) {
    check(l == 0 || outputs[l - 1], "mlp: the output of layer ", l - (l > 0), " is missing");
    const TensorView& input = l ? *outputs[l - 1] : x;
    check_ndim("mlp", "input", input, 2);
    check_weight(l, weights[l], input);
    const int64_t n = weights[l].shape[0], k = weights[l].shape[1];
    check(!relu[l] || outputs[l], "mlp: the output of layer ", l, " is missing");
    if (outputs[l]) check_matrix("mlp", "output", *outputs[l], x.dtype, m, n);
    if (dweights[l]) {
      check_matrix("mlp", "weight gradient", *dweights[l], x.dtype, n, k);
      check_contiguous("mlp", "weight gradient", *dweights[l]);
    }
    if (dbiases[l]) {
      check_vector("mlp", "bias gradient", *dbiases[l], x.dtype, n);
      check_contiguous("mlp", "bias gradient", *dbiases[l]);
    }
    if (dweights[l] || dbiases[l] || (l == 0 && dx)) lowest = l;
    if (l > 0 && k > widest) widest = k;
  }
  check_matrix("mlp", "grad_output", dy, x.dtype, m, weights.back().shape[0]);
  if (dx) {
    check_matrix("mlp", "grad_input", *dx, x.dtype, m, x.shape[1]);
    check_contiguous("mlp", "grad_input", *dx);
  }

  const ReleaseGil released(multiply_adds(x, weights) / 16);
  // The gradient of a hidden output is read while that of the one before is written.
  const size_t bytes = static_cast<size_t>(m * widest * dtype_size(x.dtype));
  const ScopedBuffer even(bytes), odd(bytes);
  TensorView gradient = dy;
  for (size_t l = layers; l-- > lowest;) {
    TensorView below;
    const TensorView* input_gradient = nullptr;
    if (l > lowest) {
      below = contiguous_matrix((l % 2 ? odd : even).data(), x.dtype, m, weights[l].shape[1]);
      input_gradient = &below;
    } else if (l == 0) {
      input_gradient = pointer(dx);
    }
    cpu_kernels().linear.backward(gradient, relu[l] ? pointer(outputs[l]) : nullptr,
                                  l ? pointer(outputs[l - 1]) : &x, &weights[l], input_gradient,
                                  pointer(dweights[l]), pointer(dbiases[l]));
    gradient = below;
  }
}

}  // namespace

void register_mlp(pybind11::module_& m) {
  m.def("mlp_forward", &forward);
  m.def("mlp_backward", &backward);
}

}  // namespace fastnn
