"""bfloat16 products on pairs along K, as on processors with bfloat16 instructions.

Processors without AVX512_BF16 run the same packing, tiles, threads and epilogues, with two FMAs instead of
the one instruction (`add_products` in csrc/core/simd.h). That instruction alone is left to machines that have
it: the variant `avx512_bf16` of the `isa` fixture runs it there.
"""

from __future__ import annotations

import itertools

import gram_cases
import linear_cases
import linear_cross_entropy_cases
import pytest
import torch
from reference import assert_close_sum, layouts
from torch import Tensor

import fastnn.functional as FF
from every_kernel import assert_reproducible
from fastnn import _dispatch

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

BF16 = torch.bfloat16


@pytest.fixture
def pairs(isa: str) -> str:
    """Every variant, with its bfloat16 products on pairs; the selection at the end of `isa` ends this too."""
    _dispatch.cpu.testing.emulate_pairs()
    return isa


def make(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(BF16)


# On pairs these four products are added in the order 1, 0, 3, 2, which does not lose the 1.
LOST_IN_ORDER = torch.tensor([[2.0**30, 0.0, 1.0, -(2.0**30)]], dtype=BF16)


def product_of_lost() -> float:
    return FF.linear(LOST_IN_ORDER, torch.ones(1, 4, dtype=BF16)).item()


def test_products_are_on_pairs_when_asked(isa: str) -> None:
    if isa == "avx512_bf16":
        pytest.skip("they always are, in the order of the processor")
    assert product_of_lost() == 0
    _dispatch.cpu.testing.emulate_pairs()
    assert product_of_lost() == 1
    _dispatch.cpu.select_isa(isa)
    assert product_of_lost() == 0


# Odd K; around a tile (8 x 48, 6 x 16, 6 x 8), the pairs of a vector (16, 8, 4) and a pass (512 pairs);
# strides of K values that alias in the cache (2 KB); more rows and columns than a block has (2048 x 1536).
SHAPES = [
    *linear_cases.SHAPES,
    *((9, 49, k) for k in (2, 3, 8, 9, 15, 16, 17, 30, 31, 32, 33, 34, 63, 64, 65)),
    *((17, 50, k) for k in (1023, 1024, 1025, 1026, 2047, 2050)),
    (2100, 3, 21),
    (3, 1601, 21),
]


def test_linear_matches_float64(pairs: str) -> None:
    for m, n, k in SHAPES:
        linear_cases.check(*linear_cases.problem((m, n, k), BF16), "relu")
        linear_cases.check(*linear_cases.problem((m, n, k), BF16, bias=False))


def test_every_layout_of_both_operands(pairs: str) -> None:
    # The three products of a layer put each operand along K and across it.
    for k in (37, 70):
        crossed = itertools.product(*(layouts(*s, BF16).values() for s in ((19, k), (53, k), (19, 53))))
        for x, w, dy in itertools.islice(crossed, 0, None, 3):  # each pair of layouts, with some of the third
            linear_cases.check(x, w, None, dy)


def test_several_blocks_of_rows_in_each_thread(pairs: str) -> None:
    # At this depth, 192 rows of A stay in L2 while a panel streams past.
    x, w = make(700, 1030), make(100, 1030)
    assert_close_sum(
        FF.linear(x, w), x.double() @ w.double().t(), x.double().abs() @ w.double().abs().t(), 1030
    )


def test_the_same_bits_every_time(pairs: str) -> None:
    x, w, b, dy = linear_cases.problem((301, 233, 1501), BF16)
    assert b is not None
    leaves = [t.requires_grad_() for t in (x, w, b)]

    def run() -> list[Tensor]:
        y = FF.linear(*leaves, activation="relu")
        return [y.detach(), FF.gram_matrix(x.detach(), True), *torch.autograd.grad(y, leaves, dy)]

    assert_reproducible(run, x.device)


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("k", [31, 32])
def test_special_values_reach_their_row_alone(pairs: str, k: int, special: float) -> None:
    for row, column in [(0, 0), (3, 17), (8, 30)]:
        x, w = make(9, k), make(50, k)
        x[row, column] = special
        expected = x.double() @ w.double().t()
        torch.testing.assert_close(FF.linear(x, w).double(), expected, equal_nan=True, rtol=0.05, atol=0.05)


def test_gram_matches_float64(pairs: str) -> None:
    for shape in gram_cases.SHAPES:
        gram_cases.check(make(*shape))
    for f in layouts(21, 71, BF16).values():
        gram_cases.check(f, True)


def test_linear_cross_entropy_matches_float64(pairs: str) -> None:
    # Its sums stay in float32 and are added up over chunks of rows.
    linear_cross_entropy_cases.check(linear_cross_entropy_cases.example(37, 67, BF16))
