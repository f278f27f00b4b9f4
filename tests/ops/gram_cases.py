"""gram_matrix against float64, for every kernel, wherever its tensors are."""

from __future__ import annotations

import torch
from reference import assert_close_sum
from torch import Tensor

import fastnn
import fastnn.functional as FF
from fastnn import _dispatch

# (B,) C, L. On the CPU around one register tile and one vector; on CUDA around tiles of 32, 64 and 128, one
# and several of them, and split L. And degenerate ones.
SHAPES = [
    (1, 1),
    (3, 7),
    (8, 48),
    (9, 17),
    (31, 33),
    (49, 100),
    (97, 513),
    (130, 64),
    (2, 1500),
    (5, 0),
    (0, 5),
    (2, 3, 0),
    (0, 3, 4),
    (2, 0, 4),
    (3, 31, 33),
    (2, 33, 15),
    (1, 64, 1000),
    (1, 65, 128),
    (1, 129, 130),
    (2, 20, 300),
    (16, 40, 16),
]


def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).to(device)


def check(f: Tensor, normalize: bool = False, dg: Tensor | None = None) -> None:
    """Forward and gradient of (C, L) or (B, C, L) features, natively, against float64."""
    leaf = f.detach().requires_grad_()
    *batch, channels, length = f.shape
    if dg is None:
        dg = make((*batch, channels, channels), f.dtype, f.device)

    def run() -> list[Tensor]:
        g = FF.gram_matrix(leaf, normalize)
        return [g.detach(), torch.autograd.grad(g, leaf, dg)[0]]

    seen = fastnn.explain(run)
    if _dispatch.cpu is not None:
        assert [(d.op, d.reason) for d in seen.decisions] == [("gram_matrix", None), ("gram_backward", None)]
    g, df = seen.result
    assert g.shape == dg.shape
    assert g.dtype == f.dtype
    assert torch.equal(g, g.mT)
    f64 = f.detach().cpu().double()
    scale = 1 / (channels * length) if normalize else 1.0
    assert_close_sum(g, f64 @ f64.mT * scale, f64.abs() @ f64.abs().mT * scale, length)
    both = dg.cpu().double() + dg.cpu().double().mT
    magnitude = both.abs() @ f64.abs() * scale
    if f.dtype.itemsize == 2:  # dG + dG^T is rounded once before the product
        magnitude = magnitude * (1 + torch.finfo(f.dtype).eps / torch.finfo(torch.float32).eps)
    assert_close_sum(df, both @ f64 * scale, magnitude, channels)
