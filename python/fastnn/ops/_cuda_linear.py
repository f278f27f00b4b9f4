"""A linear layer on CUDA: fastnn's products, or torch's with what they do not fuse in one pass.

Everything runs on torch's current stream and nothing waits for it, so that a CUDA graph can capture it.
Tensors are matrices; those that are written are contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnn.ops import _cuda_limits


def with_workspace(call: Callable[..., int], like: Tensor, *args: Any) -> None:
    """Run `call(*args, workspace)`, which returns how many bytes it needs if it was given too few."""
    needed = call(*args, None)
    if needed:
        call(*args, torch.empty(needed, dtype=torch.uint8, device=like.device))


def forward(
    kernels: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    output: Tensor,
    z: Tensor | None,
) -> None:
    """Fill `output` with act(x W^T + b), and `z` with the input of the activation.

    If torch computes the product of a 16-bit type, it is rounded before bias and activation are applied.
    """
    torch_product, float32 = _cuda_limits.choose(input.dtype, *input.shape, weight.shape[0])
    if not torch_product:
        arguments = (input, weight, bias, activation, output, z, float32)
        with_workspace(kernels.linear_forward, input, *arguments)
    elif activation is None and bias is not None:
        torch.addmm(bias, input, weight.t(), out=output)
    else:
        torch.mm(input, weight.t(), out=output)
        if activation is not None:
            kernels.linear_finish(output, bias, activation, z)


def backward(
    kernels: Any,
    grad_output: Tensor,
    saved: Tensor | None,
    activation: str | None,
    input: Tensor | None,
    weight: Tensor | None,
    grad_input: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    below_saved: Tensor | None = None,
    below_activation: str | None = None,
) -> None:
    """Fill the gradients that are given.

    Args:
        kernels: the CUDA module.
        grad_output: of the layer's output.
        saved: what the gradient of `activation` is computed from: z or the output.
        activation: the layer's own.
        input: needed for `grad_weight`.
        weight: needed for `grad_input`.
        grad_input: multiplied by the gradient of the activation below, if `input` is its output.
        grad_weight: of `weight`.
        grad_bias: of the bias.
        below_saved: `saved` of the layer below.
        below_activation: its activation.
    """
    width = grad_input if grad_input is not None else grad_weight if grad_weight is not None else None
    torch_product, float32 = False, _cuda_limits.PLAIN
    if width is not None:
        torch_product, float32 = _cuda_limits.choose(grad_output.dtype, *grad_output.shape, width.shape[1])
    if not torch_product:
        with_workspace(
            kernels.linear_backward,
            grad_output,
            *(grad_output, saved, activation, input, weight, below_saved, below_activation),
            *(grad_input, grad_weight, grad_bias, float32),
        )
        return
    grad = grad_output
    if activation is not None or grad_bias is not None:
        masked = None if activation is None else torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
        with_workspace(kernels.linear_gradient, grad, grad, saved, activation, masked, grad_bias)
        grad = grad if masked is None else masked
    if grad_input is not None:
        assert weight is not None
        torch.mm(grad, weight, out=grad_input)
        if below_activation is not None:
            with_workspace(
                kernels.linear_gradient, grad, grad_input, below_saved, below_activation, grad_input, None
            )
    if grad_weight is not None:
        assert input is not None
        torch.mm(grad.t(), input, out=grad_weight)
