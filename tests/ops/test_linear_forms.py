"""The forward of linear in all forms among which the CPU's matrix product chooses by shape."""

from __future__ import annotations

import pytest
import torch
from reference import assert_close_sum
from torch import Tensor

import fastnn.functional as FF
from every_kernel import assert_reproducible

# M x N x K at the edges of csrc/gemm/dot_gemm.h and swapped_gemm.h: vectors of 16, 8, 4 and 2 values, blocks
# and parts of 512 KB of float32, and, as the forms follow each other, depths a little above and below.
SHAPES = [
    (1, 300, 1100),
    (3, 700, 1024),
    (5, 33, 2100),
    (900, 3, 700),
    (2100, 3, 1100),
    (12, 40, 130),
    (24, 61, 160),
    (24, 61, 400),
    (31, 45, 70),
    (45, 31, 70),
    (47, 48, 200),
    (48, 49, 63),
    (48, 49, 64),
    (100, 1500, 64),
    (130, 1010, 65),
    (192, 193, 80),
    (193, 200, 80),
]


def make(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    m, n, k = shape
    return torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype), torch.randn(n, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(shape: tuple[int, int, int], dtype: torch.dtype, isa: str) -> None:
    x, w, b = make(shape, dtype)
    exact = x.double() @ w.double().t() + b.double()
    magnitude = x.double().abs() @ w.double().abs().t() + b.double().abs()
    assert_close_sum(FF.linear(x, w, b), exact, magnitude, shape[2])
    assert_close_sum(FF.linear(x, w, b, "relu"), exact.relu(), magnitude, shape[2])
    # Rows with gaps, and misaligned.
    wide_x, wide_w = x.new_zeros(shape[0], shape[2] + 3), w.new_zeros(shape[1], shape[2] + 5)
    wide_x[:, 1:-2], wide_w[:, 3:-2] = x, w
    assert torch.equal(FF.linear(wide_x[:, 1:-2], wide_w[:, 3:-2], b), FF.linear(x, w, b))


@pytest.mark.parametrize("shape", [(31, 450, 700), (100, 1500, 300), (3, 700, 1100), (900, 3, 1100)], ids=str)
def test_same_bits_for_every_thread_count(shape: tuple[int, int, int], isa: str) -> None:
    x, w, b = make(shape, torch.float32)
    assert_reproducible(lambda: [FF.linear(x, w, b, "relu")], x.device)


def test_the_same_bits_whatever_the_batch(isa: str) -> None:
    """With 200 outputs, batches of 48 or 190 use the transposed product, those of 300 do not."""
    x, w, b = make((300, 200, 1100), torch.float32)
    y = FF.linear(x, w, b)
    for rows in (48, 96, 190):
        assert torch.equal(FF.linear(x[:rows], w, b), y[:rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layer", [(300, 430), (130, 1024), (1100, 259)], ids=str)
def test_input_gradient_has_the_same_bits_whatever_the_batch(
    layer: tuple[int, int], dtype: torch.dtype, isa: str
) -> None:
    """Weights of 0.5 MB and more are read in place for 40 rows and packed for 600 (csrc/gemm/tile_gemm.h)."""
    weight = torch.randn(layer, dtype=dtype)
    dy = torch.randn(600, layer[0], dtype=dtype)

    def input_gradient(dy: Tensor) -> Tensor:
        x = torch.zeros(len(dy), layer[1], dtype=dtype, requires_grad=True)
        FF.linear(x, weight).backward(dy)
        assert x.grad is not None
        return x.grad

    dx = input_gradient(dy)
    assert_close_sum(dx, dy.double() @ weight.double(), dy.double().abs() @ weight.double().abs(), layer[0])
    for rows in (20, 40):
        assert torch.equal(input_gradient(dy[:rows]), dx[:rows])


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(31, 450, 70), (3, 700, 1100), (24, 61, 400)], ids=str)
def test_special_values_stay_where_they_belong(shape: tuple[int, int, int], special: float, isa: str) -> None:
    x, w, _ = make(shape, torch.float32)
    clean = FF.linear(x, w)
    for row in (0, shape[0] - 1):
        spoilt = x.clone()
        spoilt[row, 5] = special
        y = FF.linear(spoilt, w)
        assert not y[row].isfinite().any()
        others = torch.arange(shape[0]) != row
        assert torch.equal(y[others], clean[others])
    for column in (0, shape[1] - 1):
        spoilt = w.clone()
        spoilt[column, 5] = special
        y = FF.linear(x, spoilt)
        assert not y[:, column].isfinite().any()
        others = torch.arange(shape[1]) != column
        assert torch.equal(y[:, others], clean[:, others])
