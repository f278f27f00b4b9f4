"""The three matrix products of a linear layer, each alone: y = x Wᵀ, dX = dY W and dW = dYᵀ x.

Shapes are M x N x K, of the layer: M rows of K inputs to N outputs. Gradients are computed by the kernel that
backward calls, without autograd, because the other libraries have none around their product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import fastnn.functional
from fastnn import _dispatch

from ..case import Case, Foreign, Workload, integers
from ..peers import onednn


class _Product(NamedTuple):
    """A product as written for each side; all take the same two operands."""

    op: str
    operands: str
    ours: Callable[[Tensor, Tensor], Tensor]
    theirs: Callable[[Tensor, Tensor], Tensor]
    onednn: Callable[[Tensor, Tensor], Tensor]


def _our_dx(dy: Tensor, w: Tensor) -> Tensor:
    dx = dy.new_empty((dy.shape[0], w.shape[1]))
    _dispatch.cpu.linear_backward(dy, None, None, None, w, dx, None, None)
    return dx


def _our_dw(dy: Tensor, x: Tensor) -> Tensor:
    dw = dy.new_empty((dy.shape[1], x.shape[1]))
    _dispatch.cpu.linear_backward(dy, None, None, x, None, None, dw, None)
    return dw


_PRODUCTS = {
    "forward": _Product("linear", "x w", fastnn.functional.linear, F.linear, onednn.linear),
    "dX": _Product("linear_dx", "dy w", _our_dx, torch.mm, lambda dy, w: onednn.linear(dy, w.t())),
    "dW": _Product(
        "linear_dw",
        "dy x",
        _our_dw,
        lambda dy, x: torch.mm(dy.t(), x),
        lambda dy, x: onednn.linear(dy.t(), x.t()),
    ),
}


def _build(m: int, n: int, k: int, product: _Product) -> Workload:
    shapes = {"x": (m, k), "w": (n, k), "dy": (m, n)}
    operands = {name: integers(*shapes[name]) for name in product.operands.split()}
    values = tuple(operands.values())
    calls = {"fastnn": partial(product.ours, *values), "torch": partial(product.theirs, *values)}
    optional = {onednn.NAME: lambda: partial(product.onednn, *values)}
    # Products and sums of small integers are exact.
    return Workload(calls, 0.0, optional=optional, foreign=Foreign(product.op, operands))


CASES = [
    Case(
        f"product {name}",
        f"{m}x{n}x{k}",
        partial(_build, m, n, k, product),
        flops=2 * m * n * k,
        traffic=4 * (m * k + n * k + m * n),
        quick=quick,
    )
    for name, product in _PRODUCTS.items()
    for m, n, k, quick in (
        (64, 28, 784, True),
        (64, 128, 784, True),
        (128, 512, 784, False),
        (512, 512, 512, False),
        (1024, 1024, 1024, False),
    )
]
