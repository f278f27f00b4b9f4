"""Linear with bias and ReLU fused, against the same written with torch's ops; oneDNN fuses them too.

Shapes are M x N x K: M rows of K inputs to N outputs. Backward is two such products, dX and dW.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import fastnn.functional

from ..case import Call, Case, Foreign, Workload, integers
from ..peers import onednn


def _torch_linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.relu(F.linear(x, w, b))


def _onednn_linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return onednn.linear(x, w, b, "relu")


def _build(m: int, n: int, k: int, dtype: torch.dtype, backward: bool) -> Workload:
    x, w, b, dy = (integers(*shape, dtype=dtype) for shape in ((m, k), (n, k), (n,), (m, n)))
    plain = (x.clone(), w.clone(), b.clone())
    inputs = [each.requires_grad_() for each in (x, w, b)]
    calls: dict[str, Call] = {}
    for name, linear in (
        ("fastnn", partial(fastnn.functional.linear, activation="relu")),
        ("torch", _torch_linear),
    ):
        forward = partial(linear, *inputs)
        calls[name] = (
            partial(torch.autograd.grad, forward(), inputs, dy, retain_graph=True) if backward else forward
        )
    # The sums are exact; the only error is one rounding to the storage type.
    tolerance = 2 * torch.finfo(dtype).eps
    if backward or dtype != torch.float32:
        return Workload(calls, tolerance)
    optional = {onednn.NAME: lambda: partial(_onednn_linear, *plain)}
    foreign = Foreign("linear_relu", dict(zip("xwb", plain, strict=True)))
    return Workload(calls, tolerance, optional=optional, foreign=foreign)


CASES = [
    Case(
        f"linear + bias + relu {direction}",
        f"{m}x{n}x{k}",
        partial(_build, m, n, k, dtype, backward),
        dtype,
        flops=products * 2 * m * n * k,
        traffic=products * dtype.itemsize * (m * k + n * k + m * n),
        quick=quick,
    )
    for direction, backward, products in (("forward", False, 1), ("backward", True, 2))
    for (m, n, k), dtype, quick in (
        ((64, 28, 784), torch.float32, True),
        ((64, 128, 784), torch.float32, True),
        ((128, 512, 784), torch.float32, False),
        ((512, 512, 512), torch.float32, True),
        ((1024, 1024, 1024), torch.float32, False),
        ((512, 512, 512), torch.float64, False),
        ((512, 512, 512), torch.bfloat16, False),
    )
]
