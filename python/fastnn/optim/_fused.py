"""What torch's fused kernels cannot handle, and their part of a GradScaler's work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def fit_for_fused(lists: list[list[Any]]) -> bool:
    """Whether torch's fused kernels can update the tensors in these lists, parameters first.

    On the CPU they treat all memory from the first element on as one row of elements, in the same order and
    dtype in parameter, gradient and state: otherwise they mix up the elements, and write into gaps. A lazily
    negated gradient is an error to them, and on CUDA all of this is.
    """
    params = lists[0]
    return all(
        _is_like(t, param)
        for tensors in lists
        if len(tensors) == len(params)
        for t, param in zip(tensors, params, strict=True)
        if t is not None and t.shape == param.shape
    )


def _is_like(t: Tensor, param: Tensor) -> bool:
    if t.layout is not torch.strided:
        return True  # fused kernels refuse it
    return t.dtype is param.dtype and t.stride() == param.stride() and _is_dense(t) and not t.is_neg()


def _is_dense(t: Tensor) -> bool:
    """Whether the elements fill one block of memory, in any order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return t.numel() == 0
            expected *= size
    return True


def unscale(grads: list[Tensor], grad_scale: Tensor | None, found_inf: Tensor | None) -> bool:
    """Divide gradients by a GradScaler's scale; False if it found an infinite one: then nothing is to be
    done."""
    if found_inf is not None and found_inf.item():
        return False
    if grad_scale is not None:
        for grad in grads:
            grad.div_(grad_scale.to(grad.device))
    return True
