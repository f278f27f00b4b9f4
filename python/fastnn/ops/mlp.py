"""A chain of linear layers, each with or without ReLU, as one autograd node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import _backend
from fastnn.ops._function import NativeFunction
from fastnn.ops.linear import linear, shape_reason


class Layer(NamedTuple):
    """``relu(x W^T + b)``, or without the ReLU; `weight` (N, K), `bias` (N,) or None."""

    weight: Tensor
    bias: Tensor | None
    relu: bool


def _forward(input: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, list[Tensor]]:
    """The output of the chain, and those of all layers as matrices."""
    batch = input.shape[:-1]
    rows = batch.numel()
    flat = input if input.dim() == 2 else input.reshape(rows, input.shape[-1])
    outputs = [flat.new_empty((rows, layer.weight.shape[0])) for layer in layers]
    weights, biases, relus = zip(*layers, strict=True)
    _backend.cpu.mlp_forward(flat, weights, biases, relus, outputs)
    last = outputs[-1]
    return (last if input.dim() == 2 else last.view(*batch, last.shape[1])), outputs


class MlpFunction(NativeFunction):
    """Saves what torch's chain would: the input, the parameters and the hidden outputs."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, input: Tensor, relus: tuple[bool, ...], *parameters: Tensor | None
    ) -> Tensor:
        depth = len(relus)
        layers = list(map(Layer, parameters[:depth], parameters[depth:], relus))  # type: ignore[arg-type]
        output, outputs = _forward(input, layers)
        if not relus[-1]:
            outputs.pop()  # nobody needs it, so it may be changed in place
        ctx.relus = relus
        ctx.save_for_backward(input, *parameters, *outputs)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        input, *saved = ctx.saved_tensors
        relus = ctx.relus
        depth = len(relus)
        parameters, outputs = saved[: 2 * depth], saved[2 * depth :]
        wants_input, _, *wants = ctx.needs_input_grad
        flat, grad = input, grad_output
        if input.dim() != 2:
            rows = input.shape[:-1].numel()
            flat = input.reshape(rows, input.shape[-1])
            grad = grad_output.reshape(rows, grad_output.shape[-1])
        if _backend.use_native_backward("mlp_backward", grad, flat, *outputs):
            grad_input = grad.new_empty(flat.shape) if wants_input else None
            grads = [
                torch.empty_like(parameter, memory_format=torch.contiguous_format) if want else None
                for parameter, want in zip(parameters, wants, strict=True)
            ]
            if len(outputs) < depth:
                outputs.append(None)
            _backend.cpu.mlp_backward(
                grad, flat, parameters[:depth], outputs, relus, grad_input, grads[:depth], grads[depth:]
            )
        else:
            layers = list(map(Layer, parameters[:depth], parameters[depth:], relus))
            if torch.is_grad_enabled():
                outputs = _differentiable_outputs(flat, layers)
            grad_input, *grads = _torch_backward(grad, flat, layers, outputs, wants_input, wants)
        if grad_input is not None and grad_input.dim() != input.dim():
            grad_input = grad_input.view(input.shape)
        return grad_input, None, *grads


def _differentiable_outputs(flat: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """The outputs of all layers as functions of input and parameters, for the backward of the backward."""
    outputs = []
    for weight, bias, relu in layers:
        flat = F.linear(flat, weight, bias)
        flat = flat.relu() if relu else flat
        outputs.append(flat)
    return outputs


def _torch_backward(
    grad: Tensor,
    flat: Tensor,
    layers: Sequence[Layer],
    outputs: Sequence[Tensor],
    wants_input: bool,
    wants: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of input, weights and biases in torch's own ops: exact under double backward and vmap."""
    depth = len(layers)
    grads: list[Tensor | None] = [None] * (1 + 2 * depth)
    for i in reversed(range(depth)):
        if layers[i].relu:
            grad = torch.ops.aten.threshold_backward(grad, outputs[i], 0)
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
        RuntimeError: shapes or dtypes that do not fit together.
    """
    parameters = [layer.weight for layer in layers] + [layer.bias for layer in layers]
    reason = _backend.torch_reason(input, *parameters)
    for weight, bias, _ in layers:
        reason = reason or shape_reason(input, weight, bias)
    if reason is not None:
        for weight, bias, relu in layers:
            input = linear(input, weight, bias, "relu" if relu else None)
        return input
    _backend.decide("mlp", None)
    if torch.is_grad_enabled() and (
        input.requires_grad or any(p is not None and p.requires_grad for p in parameters)
    ):
        output: Tensor = MlpFunction.apply(input, tuple(layer.relu for layer in layers), *parameters)
        return output
    return _forward(input, layers)[0]
