"""Rounding errors of float32 products: those of sums in short chains, in every form of the product."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastnn.functional as FF
from fastnn import _dispatch

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

CHAIN = 256  # the longest of csrc/gemm/blocking.h
EPS = torch.finfo(torch.float32).eps


def forward(a: Tensor, b: Tensor) -> Tensor:
    return FF.linear(a, b.t().contiguous())


def dx(a: Tensor, b: Tensor) -> Tensor:
    x = torch.zeros(a.shape[0], b.shape[1], requires_grad=True)
    return torch.autograd.grad(FF.linear(x, b), x, a)[0]


def dw(a: Tensor, b: Tensor) -> Tensor:
    w = torch.zeros(a.shape[0], b.shape[1], requires_grad=True)
    return torch.autograd.grad(FF.linear(b, w), w, a.t().contiguous())[0]


def expected_rms(k: int, positive: bool, chain: int = CHAIN) -> float:
    """The rms error of sums of K products in chains whose results are then added up.

    Rounding a sum s to nearest has an rms error of at most eps |s| / sqrt(12). Of the first p products, |s|
    is p / 4 for uniform numbers from 0 to 1, and sqrt(p) for normal ones. `squares` is the sum of all s^2,
    inside the chains and from chain to chain.
    """
    squares = (k * chain**2 + k**3 / chain) / 48 if positive else (k * chain + k**2 / chain) / 2
    return EPS * math.sqrt(squares / 12)


@pytest.mark.parametrize("positive", [False, True], ids=["normal", "positive"])
@pytest.mark.parametrize("k", [784, 1024, 2500])
@pytest.mark.parametrize("product", [forward, dx, dw])
def test_sums_are_short_chains(
    product: Callable[[Tensor, Tensor], Tensor], k: int, positive: bool, isa: str
) -> None:
    draw = torch.rand if positive else torch.randn
    for m, n in [(1, 600), (64, 28), (64, 130), (200, 150)]:
        a, b = draw(m, k), draw(k, n)
        error = product(a, b).double() - a.double() @ b.double()
        assert error.square().mean().sqrt() <= expected_rms(k, positive), (m, n)


@pytest.mark.parametrize("k", [48, 64, 90])
@pytest.mark.parametrize("n", [3, 10, 15])
def test_few_columns_are_summed_in_two_chains(n: int, k: int, isa: str) -> None:
    a, b = torch.randn(2000, k), torch.randn(k, n)
    error = forward(a, b).double() - a.double() @ b.double()
    # Half an eps times the power of two below it: on average a sum is rounded by less, about 0.6 of the
    # square, and a single chain by 1.1 of it.
    assert error.square().mean() <= 0.85 * expected_rms(k, False, chain=k // 2) ** 2


def test_a_gram_matrix_sums_in_short_chains(isa: str) -> None:
    f = torch.rand(1, 100, 1024)
    error = FF.gram_matrix(f).double() - torch.bmm(f.double(), f.double().mT)
    assert error.square().mean().sqrt() <= expected_rms(1024, True)
