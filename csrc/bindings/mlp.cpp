// A chain of linear layers, each with or without activation, in one call forward and one backward.
//   forward   z_l = h_{l-1} W_l^T + b_l,  h_l = act_l(z_l),  h_{-1} = x, y = h_{L-1}
//   backward  of each layer as in ops/linear/linear.h, from the last to the first; the gradients of hidden
//             z_l come out of the product of the layer above and never leave the call
#include <algorithm>
#include <vector>

#include "bindings/activation_caster.h"
#include "bindings/linear_args.h"
#include "bindings/memory_ranges.h"
#include "bindings/registration.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "core/huge_pages.h"
#include "core/scratch.h"
#include "dispatch/cpu_dispatch.h"

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

// preactivations[l] takes z_l where a backward will need it.
void mlp_forward(const TensorView& x, const Tensors& weights, const Optionals& biases,
                 const Activations& activations, const Tensors& outputs, const Optionals& preactivations) {
  const size_t layers = weights.size();
  check_length("biases", biases.size(), layers);
  check_length("activations", activations.size(), layers);
  check_length("outputs", outputs.size(), layers);
  check_length("preactivations", preactivations.size(), layers);
  check_floating("mlp", "input", x);
  check_ndim("mlp", "input", x, 2);
  for (size_t l = 0; l < layers; ++l) {
    check_weight(l, weights[l], l ? outputs[l - 1] : x);
    if (biases[l]) check_vector("mlp", "bias", *biases[l], x.dtype, weights[l].shape[0]);
    check_matrix("mlp", "output", outputs[l], x.dtype, x.shape[0], weights[l].shape[0]);
    check_contiguous("mlp", "output", outputs[l]);
    if (const TensorView* z = pointer(preactivations[l])) {
      check_matrix("mlp", "preactivation", *z, x.dtype, x.shape[0], weights[l].shape[0]);
      check_contiguous("mlp", "preactivation", *z);
    }
    prefer_huge_pages({&outputs[l], pointer(preactivations[l])});
  }
  MemoryRanges ranges;
  ranges.reserve(1 + 4 * layers);
  ranges.add(x, false);
  for (size_t l = 0; l < layers; ++l) {
    ranges.add(weights[l], false);
    if (biases[l]) ranges.add(*biases[l], false);
    ranges.add(outputs[l], true);
    if (preactivations[l]) ranges.add(*preactivations[l], true);
  }
  check(ranges.disjoint(), "mlp: an output shares memory with another tensor");
  const KernelCall call(multiply_adds(x, weights) / 16);
  for (size_t l = 0; l < layers; ++l)
    cpu_kernels().linear.forward(l ? outputs[l - 1] : x, weights[l], pointer(biases[l]), activations[l],
                                 outputs[l], pointer(preactivations[l]));
}

// What a layer's gradients are computed from and where they go; `dy` is the gradient of the last layer's
// output, or of z for those below.
LinearGradients layer_gradients(size_t l, const TensorView& dy, const std::optional<TensorView>& x,
                                const Optionals& weights, const Optionals& outputs, const Optionals& dweights,
                                const Optionals& dbiases) {
  return {dy,
          nullptr,
          Activation::none,
          pointer(l ? outputs[l - 1] : x),
          pointer(weights[l]),
          nullptr,
          Activation::none,
          nullptr,
          pointer(dweights[l]),
          pointer(dbiases[l])};
}

// x, weights, outputs and preactivations (as returned by forward) may be missing unless a wanted gradient
// needs them: a layer's input for that of its weight, its weight for those of the layers below and of x, and
// whatever the gradient of its activation is a function of.
void mlp_backward(const TensorView& dy, const std::optional<TensorView>& x, const Optionals& weights,
                  const Optionals& outputs, const Optionals& preactivations, const Activations& activations,
                  const std::optional<TensorView>& dx, const Optionals& dweights, const Optionals& dbiases) {
  const size_t layers = weights.size();
  check_length("outputs", outputs.size(), layers);
  check_length("preactivations", preactivations.size(), layers);
  check_length("activations", activations.size(), layers);
  check_length("weight gradients", dweights.size(), layers);
  check_length("bias gradients", dbiases.size(), layers);
  check_ndim("mlp", "grad_output", dy, 2);
  check(layers > 0, "mlp: no layers");
  size_t lowest = layers;  // the first layer with a wanted gradient
  for (size_t l = layers; l-- > 0;)
    if (dweights[l] || dbiases[l] || (l == 0 && dx)) lowest = l;

  // The checks of each layer are those of a single layer, for a gradient of the future shape.
  const int64_t m = dy.shape[0];
  int64_t widest = 0, work = 0;
  std::vector<const TensorView*> saved(layers);  // what each activation's gradient is computed from
  TensorView gradient = dy;
  for (size_t l = layers; l-- > lowest;) {
    if (activations[l] != Activation::none)
      saved[l] = from_preactivation(activations[l]) ? pointer(preactivations[l]) : pointer(outputs[l]);
    LinearGradients args = layer_gradients(l, gradient, x, weights, outputs, dweights, dbiases);
    args.saved = saved[l];
    args.activation = activations[l];
    TensorView below;
    if (l > lowest) {
      check(weights[l].has_value(), "mlp: the weight of layer ", l, " is missing");
      check_ndim("mlp", "weight", *weights[l], 2);
      below = contiguous_matrix(nullptr, dy.dtype, m, weights[l]->shape[1]);
      args.dx = &below;
      widest = std::max(widest, weights[l]->shape[1]);
    } else if (l == 0) {
      args.dx = pointer(dx);
    }
    check_linear_backward(args);
    prefer_huge_pages({pointer(dweights[l])});
    const int64_t width = (args.dx ? args.dx->shape[1] : 0) + (args.dw ? args.dw->shape[1] : 0);
    work += gradient.numel() + gradient.numel() * width / 16;
    gradient = below;
  }
  prefer_huge_pages({pointer(dx)});
  MemoryRanges ranges;
  ranges.reserve(3 + 5 * layers);
  ranges.add(dy, false);
  if (x) ranges.add(*x, false);
  if (dx) ranges.add(*dx, true);
  for (size_t l = 0; l < layers; ++l) {
    for (const auto* read : {&weights[l], &outputs[l], &preactivations[l]})
      if (*read) ranges.add(**read, false);
    for (const auto* written : {&dweights[l], &dbiases[l]})
      if (*written) ranges.add(**written, true);
  }
  check(ranges.disjoint(), "mlp: a gradient shares memory with another tensor");

  const KernelCall call(work);
  // The gradient of a hidden output is read while that of the previous one is written.
  const size_t bytes = static_cast<size_t>(m * widest * dtype_size(dy.dtype));
  const ScopedBuffer even(bytes), odd(bytes);
  gradient = dy;
  for (size_t l = layers; l-- > lowest;) {
    TensorView below;
    LinearGradients args = layer_gradients(l, gradient, x, weights, outputs, dweights, dbiases);
    if (l + 1 == layers) {  // below, the product above has done it
      args.saved = saved[l];
      args.activation = activations[l];
    }
    if (l > lowest) {
      below = contiguous_matrix((l % 2 ? odd : even).data(), dy.dtype, m, weights[l]->shape[1]);
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
  m.def("mlp_forward", &mlp_forward);
  m.def("mlp_backward", &mlp_backward);
}

}  // namespace fastnn
