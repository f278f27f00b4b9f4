"""Products as instructions of a captured step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastnn.capture.lowering.products  # noqa: F401 (registers its rules)
from every_kernel import assert_reproducible
from fastnn import _dispatch
from fastnn.capture.lowering.products import ACTIVATIONS
from one_op import Native

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled extension")

DTYPES = [torch.float32, torch.float64]
# M x K x N around whole vectors and tiles, empty, one row, one column, and in the forms of csrc/gemm/.
SHAPES = [
    (0, 3, 4),
    (3, 0, 4),
    (1, 0, 4),
    (3, 0, 1),
    (3, 4, 0),
    (1, 1, 1),
    (1, 3, 5),
    (1, 11, 256),
    (1, 16, 16),
    (1, 64, 1),
    (1, 64, 64),
    (1, 65, 17),
    (1, 256, 6),
    (1, 2100, 33),
    (2, 9, 3),
    (5, 1, 7),
    (7, 15, 33),
    (17, 33, 1),
    (64, 31, 1),
    (128, 784, 10),
    (37, 200, 48),
    (64, 64, 64),
    (3, 1100, 20),
]
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda z: torch.nn.functional.gelu(z, approximate="tanh"),
    "silu": torch.nn.functional.silu,
}


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The same values elsewhere in memory, surrounded by NaN."""
    if layout == "transposed":
        return t.transpose(-1, -2).contiguous().clone().transpose(-1, -2)
    if layout == "strided":
        room = torch.full([2 * n + 1 for n in t.shape], float("nan"), dtype=t.dtype)
        return room[tuple(slice(1, None, 2) for _ in t.shape)].copy_(t)
    return t.clone()


def assert_sums(actual: Tensor, exact: Tensor, magnitude: Tensor, terms: int) -> None:
    """Sums of products have an error of about sqrt(terms) eps times the sum of their magnitudes."""
    assert actual.shape == exact.shape
    eps = torch.finfo(actual.dtype).eps
    error = (actual.double() - exact).abs()
    assert bool((error <= 4 * eps * (max(terms, 1) ** 0.5 * magnitude + exact.abs())).all())


def run_op(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    mode = Native()
    with torch.inference_mode(), mode:  # so that `linear` is recorded as one op
        op(*args, **kwargs)
    assert len(mode.results) == 1
    return mode.results[0][2]


def check_op(op: Callable[..., Tensor], terms: int, *args: Any, **kwargs: Any) -> None:
    doubles = [a.double() if isinstance(a, Tensor) else a for a in args]
    sizes = [a.abs() if isinstance(a, Tensor) else a for a in doubles]
    positive = {k: abs(v) for k, v in kwargs.items()}
    exact, magnitude = op(*doubles, **kwargs), op(*sizes, **positive)
    assert_sums(run_op(op, *args, **kwargs), exact, magnitude, terms)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_of_matrices_give_what_torch_gives(
    shape: tuple[int, int, int], dtype: torch.dtype, isa: str
) -> None:
    m, k, n = shape
    a, b = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)
    bias, full = torch.randn(n, dtype=dtype), torch.randn(m, n, dtype=dtype)
    for layout_a in ("contiguous", "transposed", "strided"):
        for layout_b in ("contiguous", "transposed", "strided"):
            args = laid_out(a, layout_a), laid_out(b, layout_b)
            check_op(torch.mm, k, *args)
            check_op(torch.addmm, k, bias, *args)
            check_op(torch.addmm, k, full, *args, beta=-0.5, alpha=2.0)
            check_op(torch.addmm, k, torch.randn(m, 1, dtype=dtype), *args)
            check_op(torch.ops.aten.linear, k, args[0], args[1].t(), bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [0, 1, 5, 33, 256])
def test_products_of_vectors_give_what_torch_gives(m: int, dtype: torch.dtype, isa: str) -> None:
    for k in (0, 1, 15, 16, 64, 300):
        a, x, y = (torch.randn(*s, dtype=dtype) for s in ((m, k), (k,), (m,)))
        for layout in ("contiguous", "transposed", "strided"):
            matrix, vector = laid_out(a, layout), laid_out(x, layout if layout == "strided" else "")
            check_op(torch.mv, k, matrix, vector)
            check_op(torch.addmv, k, y, matrix, vector)
            check_op(torch.addmv, k, y, matrix, vector, beta=0.5, alpha=3)
            check_op(torch.dot, k, vector, x)
            check_op(torch.addr, 1, matrix, y, vector)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 5, 3, 2), (6, 5, 4, 5), (3, 1, 64, 33), (2, 33, 70, 40)])
def test_products_of_batches_give_what_torch_gives(
    shape: tuple[int, int, int, int], dtype: torch.dtype, isa: str
) -> None:
    batch, m, k, n = shape
    a, b = torch.randn(batch, m, k, dtype=dtype), torch.randn(batch, k, n, dtype=dtype)
    for layout in ("contiguous", "transposed", "strided"):
        left, right = laid_out(a, layout), laid_out(b, layout)
        check_op(torch.bmm, k, left, right)
        check_op(torch.baddbmm, k, torch.randn(batch, m, n, dtype=dtype), left, right, beta=2.0)
        check_op(torch.baddbmm, k, torch.randn(n, dtype=dtype), left, right)
        if batch:
            check_op(torch.bmm, k, left[:1].expand(batch, m, k), right)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 1, 3, 4), (4,)], ids=str)
def test_linear_of_any_batch(shape: tuple[int, ...], isa: str) -> None:
    x, w, b = torch.randn(shape), torch.randn(5, 4), torch.randn(5)
    check_op(torch.ops.aten.linear, 4, x, w)
    check_op(torch.ops.aten.linear, 4, x, w, b)


def test_products_in_place_give_what_torch_gives(isa: str) -> None:
    a, b, c = torch.randn(9, 20), torch.randn(20, 18), torch.randn(9, 18)
    exact = c.double() + a.double() @ b.double()
    for layout in ("contiguous", "transposed", "strided"):
        assert_sums(run_op(torch.Tensor.addmm_, laid_out(c, layout), a, b), exact, exact.abs() + 5, 20)


def test_a_beta_of_0_hides_nan(isa: str) -> None:
    a, b, hidden = torch.randn(4, 5), torch.randn(5, 6), torch.full((6,), float("nan"))
    assert torch.equal(run_op(torch.addmm, hidden, a, b, beta=0), run_op(torch.mm, a, b))


def test_nan_and_infinity_pass_as_in_torch(isa: str) -> None:
    a, b = torch.randn(5, 20), torch.randn(20, 18)
    a[1, 3], a[2, 4], b[0, 7] = float("nan"), float("inf"), float("-inf")
    for bias in (torch.randn(18), torch.randn(5, 18)):
        ours, theirs = run_op(torch.addmm, bias, a, b), torch.addmm(bias, a, b)
        torch.testing.assert_close(ours, theirs, equal_nan=True, atol=1e-5, rtol=1e-5)


def execute(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    activation: str,
    z: Tensor | None = None,
    addend: Tensor | None = None,
    saved: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> None:
    given = [(1, addend), (2, saved), (4, z)]
    parts = sum(flag for flag, t in given if t is not None)
    operands = [t for t in (c, z, a, b, addend, saved) if t is not None]
    assert _dispatch.cpu is not None
    _dispatch.cpu.testing.run_instruction(
        "product", operands, [alpha, beta], [ACTIVATIONS[activation], parts]
    )


def gradient_of(activation: str, at: Tensor) -> Tensor:
    z = at.clone().requires_grad_()
    return torch.autograd.grad(FUNCTIONS[activation](z).sum(), z)[0]


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 20, 33), (33, 20, 1), (17, 9, 40), (3, 4, 9, 21)], ids=str)
def test_epilogues_give_what_torch_gives(
    activation: str, dtype: torch.dtype, shape: tuple[int, ...], isa: str
) -> None:
    """The addend, the activation, its input and its gradient, with results in every layout."""
    *batch, m, k, n = shape
    a, b, full, before = (torch.randn(*batch, *s, dtype=dtype) for s in ((m, k), (k, n), (m, n), (m, n)))
    eps = torch.finfo(dtype).eps
    row = torch.randn(n, dtype=dtype).expand(*batch, m, n)
    saved = before if activation in ("gelu", "gelu_tanh", "silu", "none") else FUNCTIONS[activation](before)
    slope = gradient_of(activation, before.double())
    close = {"atol": 300 * eps, "rtol": 100 * eps}
    for layout in ("contiguous", "transposed", "strided"):
        for addend, alpha, beta in ((None, 1, 1), (row, 1, 1), (full, 1, 1), (full, 0.5, -2), (row, 2, 3)):
            exact = alpha * (a.double() @ b.double())
            if addend is not None:
                exact += beta * addend.double()
            c, z = (laid_out(torch.empty_like(full), layout) for _ in range(2))
            execute(a, b, c, activation, addend=addend, alpha=alpha, beta=beta)
            torch.testing.assert_close(c.double(), FUNCTIONS[activation](exact), **close)
            first = c.clone()
            execute(a, b, c, activation, z=z, addend=addend, alpha=alpha, beta=beta)
            torch.testing.assert_close(z.double(), exact, **close)
            torch.testing.assert_close(c, first, **close)
            execute(a, b, c, activation, saved=laid_out(saved, layout), addend=addend, alpha=alpha, beta=beta)
            torch.testing.assert_close(c.double(), exact * slope, **close)
        c = laid_out(full, layout)
        execute(a, b, c, activation, addend=c)
        exact = full.double() + a.double() @ b.double()
        torch.testing.assert_close(c.double(), FUNCTIONS[activation](exact), **close)
        c = laid_out(saved, layout)
        execute(a, b, c, activation, saved=c)
        torch.testing.assert_close(c.double(), (a.double() @ b.double()) * slope, **close)


@pytest.mark.parametrize("shape", [(1, 700, 700), (700, 700, 1), (130, 200, 190), (20, 64, 20, 64)], ids=str)
def test_same_bits_for_every_thread_count(shape: tuple[int, ...], isa: str) -> None:
    *batch, m, k, n = shape
    a, b, addend = torch.randn(*batch, m, k), torch.randn(*batch, k, n), torch.randn(*batch, m, n)

    def results() -> list[Tensor]:
        c, d = torch.empty_like(addend), torch.empty_like(addend).transpose(-1, -2).contiguous()
        execute(a, b, c, "relu")
        execute(a, b, d.transpose(-1, -2), "tanh", addend=addend)
        return [c, d]

    assert_reproducible(results, a.device)
