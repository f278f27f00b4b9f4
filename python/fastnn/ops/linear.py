"""Linear layer with bias and activation fused into the product."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import _backend
from fastnn.ops._function import NativeFunction

ACTIVATIONS = (None, "relu")


def check_activation(op: str, activation: str | None) -> None:
    """Raise ValueError unless `activation` is one that the product can fuse."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be None or 'relu', got {activation!r}")


def _forward(input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    out_features = weight.shape[0]
    if input.dim() == 2:
        output = input.new_empty((input.shape[0], out_features))
        _backend.cpu.linear_forward(input, weight, bias, relu, output)
        return output
    batch = input.shape[:-1]
    output = input.new_empty((batch.numel(), out_features))
    _backend.cpu.linear_forward(input.reshape(batch.numel(), input.shape[-1]), weight, bias, relu, output)
    return output.view(*batch, out_features)


class LinearFunction(NativeFunction):
    """Saves what the wanted gradients need: input for dW, weight for dX, output for the ReLU mask."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool
    ) -> Tensor:
        output = _forward(input, weight, bias, relu)
        wants_input, wants_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(
            input if wants_weight else None, weight if wants_input else None, output if relu else None
        )
        ctx.input_shape = input.shape
        return output

    @staticmethod
    def backward(  # noqa: D102
        ctx: Any, grad_output: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        input, weight, output = ctx.saved_tensors
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        batch, in_features = ctx.input_shape[:-1].numel(), ctx.input_shape[-1]
        out_features = grad_output.shape[-1]
        if not _backend.use_native_backward("linear_backward", grad_output, output):
            if output is not None:
                grad_output = torch.ops.aten.threshold_backward(grad_output, output, 0)
            grad = grad_output.reshape(batch, out_features)
            grad_input = (grad @ weight).view(ctx.input_shape) if wants_input else None
            grad_weight = grad.t() @ input.reshape(batch, in_features) if wants_weight else None
            return grad_input, grad_weight, grad.sum(0) if wants_bias else None, None
        flat = grad_output.dim() == 2
        grad = grad_output if flat else grad_output.reshape(batch, out_features)
        grad_input = grad.new_empty((batch, in_features)) if wants_input else None
        grad_weight = grad.new_empty((out_features, in_features)) if wants_weight else None
        grad_bias = grad.new_empty(out_features) if wants_bias else None
        _backend.cpu.linear_backward(
            grad,
            output if flat or output is None else output.view(batch, out_features),
            input if flat or input is None else input.reshape(batch, in_features),
            weight,
            grad_input,
            grad_weight,
            grad_bias,
        )
        if not flat and grad_input is not None:
            grad_input = grad_input.view(ctx.input_shape)
        return grad_input, grad_weight, grad_bias, None


def _torch_linear(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    output = F.linear(input, weight, bias)
    return output if activation is None else F.relu(output)


def shape_reason(input: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why torch must run a layer whose tensors have these shapes, or None."""
    if weight.dim() != 2 or input.dim() == 0:
        return "weight is not a matrix or input has no dimension"
    if bias is None:
        return None
    if bias.dim() != 1:
        return "bias is not a vector"
    if bias.numel() == 1 and weight.shape[0] != 1:
        return "bias is one number for all outputs"
    return None


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    r"""Affine map with an activation fused into the product.

    .. math:: y = \operatorname{act}(x W^\top + b)

    .. math:: g = dY \cdot [\,y > 0\,]\ \text{(ReLU)},\quad dX = g W,\quad dW = g^\top x,\quad
        db = \textstyle\sum g

    Backward computes only the gradients that are asked for. 16-bit inputs are summed in float32.

    Args:
        input: ``(*, K)``, any strides; float32, float64, bfloat16 or float16.
        weight: ``(N, K)``, dtype of ``input``.
        bias: ``(N,)`` or None.
        activation: None or ``"relu"``.

    Returns:
        Tensor ``(*, N)``, contiguous. With K = 0 it is ``act(b)``.

    Raises:
        ValueError: unknown activation.
        RuntimeError: shapes or dtypes that do not fit together.
    """
    check_activation("linear", activation)
    reason = _backend.torch_reason(input, weight, bias) or shape_reason(input, weight, bias)
    if not _backend.decide("linear", reason):
        return _torch_linear(input, weight, bias, activation)
    relu = activation is not None
    if torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        output: Tensor = LinearFunction.apply(input, weight, bias, relu)
        return output
    return _forward(input, weight, bias, relu)
