"""A chain of linear layers, each with or without activation, as one autograd node."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import _backend
from fastnn.ops import _cuda_linear
from fastnn.ops._function import NativeFunction, needed_gradients
from fastnn.ops.linear import (
    FROM_PREACTIVATION,
    check_activation,
    linear,
    shape_reason,
    torch_activation,
    torch_activation_gradient,
)


class Layer(NamedTuple):
    """``act(x W^T + b)``; `weight` (N, K), `bias` (N,) or None, `activation` as in `functional.linear`."""

    weight: Tensor
    bias: Tensor | None
    activation: str | None


Activations = Sequence[str | None]


# What a forward leaves behind, as matrices: outputs, of which the last is None where no backward needs it;
# and preactivations, None but for the layers whose gradients need them, or an empty list.
Values = list[Any]


def _forward(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Activations,
    saving: bool,
) -> tuple[Tensor, Values, Values]:
    """The output of the chain; outputs and, if `saving`, preactivations of its layers."""
    flat = input if input.dim() == 2 else input.reshape(input.shape[:-1].numel(), input.shape[-1])
    rows = flat.shape[0]
    outputs: Values = [flat.new_empty(rows, weight.shape[0]) for weight in weights]
    preactivations: Values = []
    if saving and not FROM_PREACTIVATION.isdisjoint(activations):
        preactivations = [
            torch.empty_like(output) if activation in FROM_PREACTIVATION else None
            for output, activation in zip(outputs, activations, strict=True)
        ]
    kernels = _backend.native(flat)
    if kernels is _backend.cpu:
        kernels.mlp_forward(flat, weights, biases, activations, outputs, preactivations)
    else:
        below = flat
        for i, layer in enumerate(zip(weights, biases, activations, strict=True)):
            z = preactivations[i] if preactivations else None
            _cuda_linear.forward(kernels, below, *layer, outputs[i], z)
            below = outputs[i]
    last = outputs[-1]
    output = last if input.dim() == 2 else last.view(*input.shape[:-1], last.shape[1])
    return output, outputs, preactivations


class MlpFunction(NativeFunction):
    """Saves what torch's chain would: the input, the parameters, hidden outputs, and z of GELU and SiLU."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, input: Tensor, activations: Activations, *parameters: Any
    ) -> Tensor:
        depth = len(activations)
        output, outputs, preactivations = _forward(
            input, parameters[:depth], parameters[depth:], activations, saving=True
        )
        if activations[-1] is None or activations[-1] in FROM_PREACTIVATION:
            outputs[-1] = None  # nobody needs it, so it may be changed in place
        ctx.activations = activations
        ctx.save_for_backward(input, *parameters, *outputs, *preactivations)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        input, *saved = ctx.saved_tensors
        activations = ctx.activations
        depth = len(activations)
        parameters, outputs, preactivations = (
            saved[: 2 * depth],
            saved[2 * depth : 3 * depth],
            saved[3 * depth :],
        )
        flat, grad = input, grad_output
        if input.dim() != 2:
            rows = input.shape[:-1].numel()
            flat = input.reshape(rows, input.shape[-1])
            grad = grad_output.reshape(rows, grad_output.shape[-1])
        if _backend.use_native_backward("mlp_backward", grad, flat, *outputs, cuda=True):
            wants_input, _, *wants = needed_gradients(ctx)
            grad_input = grad.new_empty(*flat.shape) if wants_input else None
            grads = [
                grad.new_empty(*parameter.shape) if want else None
                for parameter, want in zip(parameters, wants, strict=True)
            ]
            kernels = _backend.native(grad)
            call = kernels.mlp_backward if kernels is _backend.cpu else partial(_cuda_backward, kernels)
            call(
                grad,
                flat,
                parameters[:depth],
                outputs,
                preactivations,
                activations,
                grad_input,
                grads[:depth],
                grads[depth:],
            )
        else:
            wants_input, _, *wants = ctx.needs_input_grad
            layers = list(map(Layer, parameters[:depth], parameters[depth:], activations))
            if torch.is_grad_enabled():
                outputs, preactivations = _differentiable_values(flat, layers)
            grad_input, *grads = _torch_backward(
                grad, flat, layers, outputs, preactivations, wants_input, wants
            )
        if grad_input is not None and grad_input.dim() != input.dim():
            grad_input = grad_input.view(input.shape)
        return grad_input, None, *grads


def _cuda_backward(
    kernels: Any,
    grad: Tensor,
    flat: Tensor,
    weights: Sequence[Tensor],
    outputs: Values,
    preactivations: Values,
    activations: Activations,
    grad_input: Tensor | None,
    grad_weights: Values,
    grad_biases: Values,
) -> None:
    """Layer by layer; each product for dX has the gradient of the activation below in its epilogue."""
    saved = [
        preactivations[i] if activation in FROM_PREACTIVATION else outputs[i]
        for i, activation in enumerate(activations)
    ]
    own, own_saved = activations[-1], None if activations[-1] is None else saved[-1]
    # No layer below the lowest of which a gradient is wanted needs its gradient in z.
    wanted = [
        i for i, grads in enumerate(zip(grad_weights, grad_biases, strict=True)) if grads != (None, None)
    ]
    last = 0 if grad_input is not None else min(wanted, default=len(activations))
    for i in reversed(range(last, len(activations))):
        below = activations[i - 1] if i else None
        grad_below = grad_input
        if i > last:
            grad_below = torch.empty(outputs[i - 1].shape, dtype=grad.dtype, device=grad.device)
        _cuda_linear.backward(
            kernels,
            *(grad, own_saved, own, outputs[i - 1] if i else flat, weights[i]),
            *(grad_below, grad_weights[i], grad_biases[i]),
            *(saved[i - 1] if below is not None else None, below),
        )
        if grad_below is not None:
            grad = grad_below
        own = own_saved = None


def _differentiable_values(flat: Tensor, layers: Sequence[Layer]) -> tuple[Values, Values]:
    """Outputs and preactivations as functions of input and parameters, for the backward of the backward."""
    outputs, preactivations = [], []
    for weight, bias, activation in layers:
        z = F.linear(flat, weight, bias)
        flat = torch_activation(z, activation)
        preactivations.append(z)
        outputs.append(flat)
    return outputs, preactivations


def _torch_backward(
    grad: Tensor,
    flat: Tensor,
    layers: Sequence[Layer],
    outputs: Values,
    preactivations: Values,
    wants_input: bool,
    wants: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of input, weights and biases in torch's own ops: exact under double backward and vmap."""
    depth = len(layers)
    grads: list[Tensor | None] = [None] * (1 + 2 * depth)
    for i in reversed(range(depth)):
        activation = layers[i].activation
        if activation is not None:
            saved = preactivations if activation in FROM_PREACTIVATION else outputs
            grad = torch_activation_gradient(grad, saved[i], activation)
        if wants[i]:
            grads[1 + i] = grad.t() @ (outputs[i - 1] if i else flat)
        if wants[depth + i]:
            grads[1 + depth + i] = grad.sum(0)
        if i or wants_input:
            grad = grad @ layers[i].weight
    if wants_input:
        grads[0] = grad
    return grads


def mlp(input: Tensor, layers: Sequence[Layer]) -> Tensor:
    r"""Run a chain of linear layers as one autograd node, forward and backward in one native call each.

    .. math:: h_l = \operatorname{act}_l(h_{l-1} W_l^\top + b_l),\qquad h_{-1} = x,\ y = h_{L-1}

    The gradients are those of :func:`fastnn.functional.linear`, layer by layer from the last to the first.
    What the kernels do not cover runs as one `linear` after the other.

    Args:
        input: ``(*, K)``; float32, float64, bfloat16 or float16.
        layers: at least one; the (N, K) of each weight continue one another.

    Returns:
        Tensor ``(*, N)`` of the last layer.

    Raises:
        ValueError: unknown activation, or no layers.
        RuntimeError: shapes or dtypes that do not fit together.
    """
    if not layers:
        raise ValueError("mlp: expected at least one layer, got none")
    return mlp_chain(input, *map(list, zip(*layers, strict=True)))


def mlp_chain(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Activations,
) -> Tensor:
    """:func:`mlp` of layers whose parts come in lists of their own."""
    reason = _backend.torch_reason(input, *weights, *biases, cuda=True)
    for weight, bias, activation in zip(weights, biases, activations, strict=True):
        check_activation("mlp", activation)
        reason = reason or shape_reason(input, weight, bias)
    if reason is not None:
        for weight, bias, activation in zip(weights, biases, activations, strict=True):
            input = linear(input, weight, bias, activation)
        return input
    _backend.decide("mlp", None)
    if torch.is_grad_enabled() and (
        weights[0].requires_grad  # the answer nearly always
        or any(t is not None and t.requires_grad for t in (input, *weights, *biases))
    ):
        output: Tensor = MlpFunction.apply(input, activations, *weights, *biases)
        return output
    return _forward(input, weights, biases, activations, saving=False)[0]
