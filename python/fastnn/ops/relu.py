"""ReLU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import _dispatch
from fastnn._torch_internals import is_view
from fastnn.ops._function import NativeFunction
from fastnn.ops.sizes import SMALL, is_small_relu


def _dense(t: Tensor) -> Tensor:
    """`t`, or a copy if its elements have gaps or share memory; strided like torch's results."""
    if t.is_contiguous():
        return t
    like = torch.empty_like(t)
    return t if t.stride() == like.stride() else like.copy_(t)


def _in_memory_order(dense: Tensor) -> Tensor:
    """A contiguous view of all elements of `dense`."""
    if dense.is_contiguous() and dense.dim() <= _dispatch.MAX_DIMS:
        return dense
    return dense.as_strided((dense.numel(),), (1,))


def _forward(input: Tensor) -> Tensor:
    dense = _dense(input)
    output = torch.empty_like(dense)
    _dispatch.native(input).relu_forward(_in_memory_order(dense), _in_memory_order(output))
    return output


def _forward_inplace(input: Tensor) -> None:
    """Rectify `input` without autograd's knowledge."""
    dense = _dense(input)
    memory = _in_memory_order(dense)
    _dispatch.native(input).relu_forward(memory, memory)
    if dense is not input:
        input.copy_(dense)


class ReluFunction(NativeFunction):
    """Saves the output only: its sign says where the gradient passes."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, inplace: bool) -> Tensor:  # noqa: D102
        if inplace:
            _forward_inplace(input)
            output = input
            ctx.mark_dirty(input)  # also bumps the version counter
        else:
            output = _forward(input)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None]:  # noqa: D102
        (output,) = ctx.saved_tensors
        if not _dispatch.use_native_backward("relu_backward", grad_output, output, cuda="relu"):
            return torch.ops.aten.threshold_backward(grad_output, output, 0), None
        # Both in the memory order of the output, which the gradient then has too.
        output = _dense(output)
        if grad_output.stride() != output.stride():
            grad_output = torch.empty_like(output).copy_(grad_output)
        grad_input = torch.empty_like(output)
        _dispatch.native(output).relu_backward(
            _in_memory_order(grad_output), _in_memory_order(output), _in_memory_order(grad_input)
        )
        return grad_input, None


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    r"""Rectified linear unit, elementwise.

    .. math:: y = \max(x, 0), \qquad dX = dY \cdot [\,y > 0\,]

    NaN stays NaN, and its gradient is passed on; the gradient at 0 is 0. Only the output is saved for
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
    if is_small_relu(input):
        _dispatch.decide("relu", SMALL)
        return F.relu(input, inplace)
    if inplace:
        return _relu_inplace(input)
    if not _dispatch.decide("relu", _dispatch.torch_reason(input, cuda="relu")):
        return F.relu(input)
    if input.requires_grad and torch.is_grad_enabled():
        output: Tensor = ReluFunction.apply(input, False)
        return output
    return _forward(input)


def _relu_inplace(input: Tensor) -> Tensor:
    grad_enabled = torch.is_grad_enabled()
    reason = _dispatch.torch_reason(input, cuda="relu")
    if reason is None and grad_enabled and (is_view(input) or (input.requires_grad and input.is_leaf)):
        reason = "torch guards in-place writes to leaves and views"
    elif reason is None and input.is_inference() and not torch.is_inference_mode_enabled():
        reason = "torch guards in-place writes to inference tensors"
    if not _dispatch.decide("relu", reason):
        return F.relu(input, inplace=True)
    if grad_enabled and input.requires_grad:
        output: Tensor = ReluFunction.apply(input, True)
        return output
    _forward_inplace(input)
    torch.autograd.graph.increment_version(input)
    return input
