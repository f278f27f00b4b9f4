// A chain of linear layers, each with or without activation, in one call forward and one backward.
//   forward   z_l = h_{l-1} W_l^T + b_l,  h_l = act_l(z_l),  h_{-1} = x, y = h_{L-1}
//   backward  of each layer as in ops/linear/linear.h, from the last to the first; the gradients of hidden
//             z_l come out of the product of the layer above and never leave the call
#include <vector>

#include "bindings/activation_caster.h"
#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/cpu_dispatch.h"
#include "core/huge_pages.h"
#include "core/scratch.h"

namespace fastnn {

namespace {

using Tensors = std::vector<TensorView>;
using Optionals = std::vector<std::optional<TensorView>>;
using Activations = std::vector<Activation>;

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

const TensorView* preactivation(const Optionals& preactivations, size_t layer) {
  return preactivations.empty() ? nullptr : pointer(preactivations[layer]);
}

// preactivations[l] takes z_l where a backward will need it; an empty list asks for none.
void forward(const TensorView& x, const Tensors& weights, const Optionals& biases,
             const Activations& activations, const Tensors& outputs, const Optionals& preactivations) {
  const size_t layers = weights.size();
  check_length("biases", biases.size(), layers);
  check_length("activations", activations.size(), layers);
  check_length("outputs", outputs.size(), layers);
  if (!preactivations.empty()) check_length("preactivations", preactivations.size(), layers);
  check_floating("mlp", "input", x);
  check_ndim("mlp", "input", x, 2);
  for (size_t l = 0; l < layers; ++l) {
    check_weight(l, weights[l], l ? outputs[l - 1] : x);
    if (biases[l]) check_vector("mlp", "bias", *biases[l], x.dtype, weights[l].shape[0]);
    check_matrix("mlp", "output", outputs[l], x.dtype, x.shape[0], weights[l].shape[0]);
    check_contiguous("mlp", "output", outputs[l]);
    if (const TensorView* z = preactivation(preactivations, l)) {
      check_matrix("mlp", "preactivation", *z, x.dtype, x.shape[0], weights[l].shape[0]);
      check_contiguous("mlp", "preactivation", *z);
    }
    prefer_huge_pages({&outputs[l], preactivation(preactivations, l)});
  }
  const KernelCall call(multiply_adds(x, weights) / 16);
  for (size_t l = 0; l < layers; ++l)
    cpu_kernels().linear.forward(l ? outputs[l - 1] : x, weights[l], pointer(biases[l]), activations[l],
                                 outputs[l], preactivation(preactivations, l));
}

// outputs[l] is the output of layer l; the last one is needed only if its activation's gradient is taken from
// it. preactivations as forward gave them.
void backward(const TensorView& dy, const TensorView& x, const Tensors& weights, const Optionals& outputs,
              const Optionals& preactivations, const Activations& activations,
              const std::optional<TensorView>& dx, const Optionals& dweights, const Optionals& dbiases) {
  const size_t layers = weights.size();
  check_length("outputs", outputs.size(), layers);
  if (!preactivations.empty()) check_length("preactivations", preactivations.size(), layers);
  check_length("activations", activations.size(), layers);
  check_length("weight gradients", dweights.size(), layers);
  check_length("bias gradients", dbiases.size(), layers);
  check_floating("mlp", "input", x);
  check_ndim("mlp", "input", x, 2);
  check(layers > 0, "mlp: no layers");
  const int64_t m = x.shape[0];
  int64_t widest = 0;
  std::vector<const TensorView*> saved(layers);  // what the gradient of each layer's activation is taken from
  size_t lowest = layers;                        // the first layer that has a gradient to give
  for (size_t l = layers; l-- > 0;) {
    check(l == 0 || outputs[l - 1], "mlp: the output of layer ", l - (l > 0), " is missing");
    const TensorView& input = l ? *outputs[l - 1] : x;
    check_ndim("mlp", "input", input, 2);
    check_weight(l, weights[l], input);
    const int64_t n = weights[l].shape[0], k = weights[l].shape[1];
    if (outputs[l]) check_matrix("mlp", "output", *outputs[l], x.dtype, m, n);
    if (activations[l] != Activation::none) {
      const bool from_z = from_preactivation(activations[l]);
      saved[l] = from_z ? preactivation(preactivations, l) : pointer(outputs[l]);
      check(saved[l] != nullptr, "mlp: the ", from_z ? "preactivation" : "output", " of layer ", l,
            " is missing");
      if (from_z) check_matrix("mlp", "preactivation", *saved[l], x.dtype, m, n);
    }
    if (dweights[l]) {
      check_matrix("mlp", "weight gradient", *dweights[l], x.dtype, n, k);
      check_contiguous("mlp", "weight gradient", *dweights[l]);
    }
    if (dbiases[l]) {
      check_vector("mlp", "bias gradient", *dbiases[l], x.dtype, n);
      check_contiguous("mlp", "bias gradient", *dbiases[l]);
    }
    prefer_huge_pages({pointer(dweights[l])});
    if (dweights[l] || dbiases[l] || (l == 0 && dx)) lowest = l;
    if (l > 0 && k > widest) widest = k;
  }
  check_matrix("mlp", "grad_output", dy, x.dtype, m, weights.back().shape[0]);
  if (dx) {
    check_matrix("mlp", "grad_input", *dx, x.dtype, m, x.shape[1]);
    check_contiguous("mlp", "grad_input", *dx);
    prefer_huge_pages({pointer(dx)});
  }

  const KernelCall call(multiply_adds(x, weights) / 16);
  // The gradient of a hidden output is read while that of the one before is written.
  const size_t bytes = static_cast<size_t>(m * widest * dtype_size(x.dtype));
  const ScopedBuffer even(bytes), odd(bytes);
  TensorView gradient = dy;
  for (size_t l = layers; l-- > lowest;) {
    TensorView below;
    LinearGradients args{gradient,
                         nullptr,
                         Activation::none,
                         l ? pointer(outputs[l - 1]) : &x,
                         &weights[l],
                         nullptr,
                         Activation::none,
                         nullptr,
                         pointer(dweights[l]),
                         pointer(dbiases[l])};
    if (l + 1 == layers) {  // further down the product above has seen to it
      args.saved = saved[l];
      args.activation = activations[l];
    }
    if (l > lowest) {
      below = contiguous_matrix((l % 2 ? odd : even).data(), x.dtype, m, weights[l].shape[1]);
      args.dx = &below;
      args.below_saved = saved[l - 1];
      args.below_activation = activations[l - 1];
    } else if (l == 0) {
      args.dx = pointer(dx);
    }
    cpu_kernels().linear.backward(args);
    gradient = below;
  }
}

}  // namespace

void register_mlp(pybind11::module_& m) {
  m.def("mlp_forward", &forward);
  m.def("mlp_backward", &backward);
}

}  // namespace fastnn
