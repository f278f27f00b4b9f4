"""ReLU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import _backend


class ReluFunction(torch.autograd.Function):
    """Saves the output only: its sign says where the gradient passes."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, inplace: bool) -> Tensor:  # noqa: D102
        if inplace:
            # The kernel wants dense memory; a strided input is rectified in a copy and written back.
            output = input
            dense = input.contiguous()
            _backend.cpu.relu_forward(dense, dense)
            if dense is not input:
                input.copy_(dense)
            ctx.mark_dirty(
                input
            )  # this also bumps the version counter, which the kernel's raw write does not
        else:
            dense = input.contiguous()
            output = torch.empty_like(dense)
            _backend.cpu.relu_forward(dense, output)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None]:  # noqa: D102
        (output,) = ctx.saved_tensors
        if torch.is_grad_enabled() or not _backend.use_native("relu_backward", grad_output, output):
            # torch's own op keeps double backward and batched gradients exact.
            return torch.ops.aten.threshold_backward(grad_output, output, 0), None
        dense_output, dense_grad = output.contiguous(), grad_output.contiguous()
        grad_input = torch.empty_like(dense_grad)
        _backend.cpu.relu_backward(dense_grad, dense_output, grad_input)
        return grad_input, None


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    r"""Rectified linear unit, elementwise.

    .. math:: y = \max(x, 0), \qquad dX = dY \cdot [\,y > 0\,]

    NaN stays NaN, and the gradient passes there; the gradient at 0 is 0. Only the output is saved for
    backward.

    Args:
        input: any shape, strides and alignment; float32, float64, bfloat16 or float16. Other inputs go to
            :func:`torch.nn.functional.relu`.
        inplace: write the result over ``input``.

    Returns:
        Tensor of the shape and dtype of ``input``; ``input`` itself if ``inplace``.

    Raises:
        RuntimeError: ``inplace`` on a leaf that requires grad, as in torch.
    """
    if not _backend.use_native("relu", input):
        return F.relu(input, inplace=inplace)
    output: Tensor = ReluFunction.apply(input, inplace)
    return output
