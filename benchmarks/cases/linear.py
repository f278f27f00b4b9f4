"""Linear, with bias and ReLU fused, against the same written with torch's ops.

Shapes are M x N x K: M rows of K inputs to N outputs. Backward is two such products, dX and dW.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import fastnn.functional

from ..case import Case, Workload, integers


def _torch_linear(x: Tensor, w: Tensor, b: Tensor | None, fused: bool) -> Tensor:
    y = F.linear(x, w, b)
    return F.relu(y) if fused else y


def _fastnn_linear(x: Tensor, w: Tensor, b: Tensor | None, fused: bool) -> Tensor:
    return fastnn.functional.linear(x, w, b, activation="relu" if fused else None)


def _build(m: int, n: int, k: int, dtype: torch.dtype, fused: bool, backward: bool) -> Workload:
    x, w, dy = (integers(*shape, dtype=dtype) for shape in ((m, k), (n, k), (m, n)))
    inputs = [x.requires_grad_(), w.requires_grad_()]
    b = integers(n, dtype=dtype).requires_grad_() if fused else None
    if b is not None:
        inputs.append(b)
    calls = {}
    for name, linear in (("fastnn", _fastnn_linear), ("torch", _torch_linear)):
        forward = partial(linear, x, w, b, fused)
        calls[name] = (
            partial(torch.autograd.grad, forward(), inputs, dy, retain_graph=True) if backward else forward
        )
    # The sums are exact; what is left is one rounding to the storage type.
    return Workload(calls, tolerance=2 * torch.finfo(dtype).eps)


CASES = [
    Case(
        f"linear{' + bias + relu' if fused else ''} {direction}",
        f"{m}x{n}x{k}",
        partial(_build, m, n, k, dtype, fused, backward),
        dtype,
        flops=products * 2 * m * n * k,
        quick=quick,
    )
    for direction, backward, products in (("forward", False, 1), ("backward", True, 2))
    for (m, n, k), dtype, fused, quick in (
        ((64, 28, 784), torch.float32, True, True),
        ((64, 128, 784), torch.float32, True, True),
        ((128, 512, 784), torch.float32, True, False),
        ((512, 512, 512), torch.float32, True, True),
        ((1024, 1024, 1024), torch.float32, True, False),
        ((1024, 1024, 1024), torch.float32, False, False),
        ((512, 512, 512), torch.float64, True, False),
        ((512, 512, 512), torch.bfloat16, True, False),
    )
]
