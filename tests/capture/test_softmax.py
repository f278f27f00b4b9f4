"""Softmax and the losses of classifiers as instructions of a captured step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from every_kernel import assert_reproducible
from fastnn import _dispatch
from fastnn.capture.ir import Storage, View
from fastnn.capture.lowering.table import ERRORS, Lowering, lower
from one_op import Native, run_nodes

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled extension")

aten = torch.ops.aten
DTYPES = [torch.float32, torch.float64]
# Shapes and the dimension of the classes: few and many, rows along the lanes and one at a time, strided.
SHAPES = [
    ((1, 6), 1),
    ((2, 3), 1),
    ((64, 10), 1),
    ((33, 2), 1),
    ((17, 1), 1),
    ((1, 17), 0),
    ((16, 16), 1),
    ((5, 257), 1),
    ((3, 4500), 1),
    ((40, 100), 1),
    ((31, 17), 0),
    ((300, 5), 0),
    ((3, 4, 5), 1),
    ((3, 4, 5), 2),
    ((2, 7, 3, 11), 1),
    ((5,), 0),
    ((), 0),
    ((0, 4), 1),
    ((4, 0), 1),
]


def native(op: Any, *args: Any) -> Any:
    """The native results of a torch op."""
    mode = Native()
    with torch.no_grad(), mode:
        op(*args)
    assert len(mode.results) == 1
    return mode.results[0][2]


def layouts(t: Tensor) -> list[Tensor]:
    room = torch.full([2 * n + 1 for n in t.shape], float("nan"), dtype=t.dtype)
    order = tuple(reversed(range(t.ndim)))
    turned = t.permute(order).contiguous().permute(order)
    return [t, turned, room[tuple(slice(1, None, 2) for _ in t.shape)].copy_(t)]


def assert_near(actual: Tensor, exact: Tensor, eps_of: torch.dtype, scale: float = 1.0) -> None:
    eps = torch.finfo(eps_of).eps
    torch.testing.assert_close(
        actual.double(), exact, atol=20 * eps * scale, rtol=20 * eps * max(scale, 1), equal_nan=True
    )


@pytest.mark.parametrize("op", [aten._softmax, aten._log_softmax])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
def test_softmax_gives_what_torch_gives(
    op: Any, dtype: torch.dtype, shape: tuple[int, ...], dim: int, isa: str
) -> None:
    x = 5 * torch.randn(shape, dtype=dtype)
    for given in layouts(x):
        for d in {dim, dim - max(len(shape), 1)}:
            assert_near(native(op, given, d, False), op(x.double(), dim, False), dtype, 4)


@pytest.mark.parametrize(
    ("op", "backward"),
    [(aten._softmax, aten._softmax_backward_data), (aten._log_softmax, aten._log_softmax_backward_data)],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=str)
def test_its_gradient_gives_what_torch_gives(
    op: Any, backward: Any, dtype: torch.dtype, shape: tuple[int, ...], dim: int, isa: str
) -> None:
    y, g = op(torch.randn(shape, dtype=dtype), dim, False), torch.randn(shape, dtype=dtype)
    exact = backward(g.double(), y.double(), dim, torch.float64)
    for given_y, given_g in zip(layouts(y), layouts(g), strict=True):
        assert_near(native(backward, given_g, given_y, dim, dtype), exact, dtype, 4)
    ones = torch.ones((), dtype=dtype).expand(shape)
    exact = backward(ones.double(), y.double(), dim, torch.float64)
    assert_near(native(backward, ones, y, dim, dtype), exact, dtype, 4)


@pytest.mark.parametrize("op", [aten._softmax, aten._log_softmax])
@pytest.mark.parametrize("classes", [3, 20, 300])
def test_nan_and_infinity_pass_as_in_torch(op: Any, classes: int, isa: str) -> None:
    x = torch.randn(40, classes)
    x[1, 2], x[2, 0], x[3] = float("nan"), float("inf"), float("-inf")
    x[4, 1], x[5], x[6, 2], x[7] = float("-inf"), float("nan"), 3e38, 3e38
    for given in (x, x[:2], x[2:4], x[4:6]):
        torch.testing.assert_close(native(op, given, 1, False), op(given, 1, False), equal_nan=True)


REDUCTIONS = [0, 1, 2]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target_dtype", [torch.int64, torch.uint8], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 33, 2500])
def test_nll_gives_what_torch_gives(
    reduction: int, dtype: torch.dtype, target_dtype: torch.dtype, rows: int, isa: str
) -> None:
    for classes in (1, 2, 10, 37):
        x = torch.randn(rows, classes, dtype=dtype).log_softmax(1)
        target = torch.randint(classes, (rows,), dtype=target_dtype)
        weights = torch.rand(classes, dtype=dtype)
        for weight in (None, weights, torch.rand(classes, 2, dtype=dtype)[:, 1]):
            for ignored in (-100, 0):
                for given in layouts(x):
                    theirs = aten.nll_loss_forward(
                        x.double(), target, None if weight is None else weight.double(), reduction, ignored
                    )
                    ours = native(aten.nll_loss_forward, given, target, weight, reduction, ignored)
                    for a, b in zip(ours, theirs, strict=True):
                        # torch adds up in order: of 2,500 rows that loses the last digits of a double.
                        assert_near(a, b, dtype, 1e3 if dtype is torch.float64 else 1)
                g = torch.randn(rows if reduction == 0 else (), dtype=dtype)
                total = theirs[1].to(dtype)
                args = g, x, target, weight, reduction, ignored, total
                if total != 0 or reduction != 1:
                    expected = aten.nll_loss_backward(*args)
                    assert_near(native(aten.nll_loss_backward, *args), expected.double(), dtype)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nll_of_one_row_and_of_images(reduction: int, isa: str) -> None:
    x, target = torch.randn(5).log_softmax(0), torch.tensor(3)
    for ours, theirs in zip(
        native(aten.nll_loss_forward, x, target, None, reduction, -100),
        aten.nll_loss_forward(x, target, None, reduction, -100),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    x, target = torch.randn(3, 4, 5, 7).log_softmax(1), torch.randint(4, (3, 5, 7))
    target[0, 1, 2] = 2
    weight = torch.rand(4)
    results = native(aten.nll_loss2d_forward, x, target, weight, reduction, 2)
    expected = aten.nll_loss2d_forward(x, target, weight, reduction, 2)
    for ours, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    g = torch.randn_like(expected[0])
    args = g, x, target, weight, reduction, 2, expected[1]
    torch.testing.assert_close(native(aten.nll_loss2d_backward, *args), aten.nll_loss2d_backward(*args))


def test_a_row_without_classes_that_count_is_nan(isa: str) -> None:
    x, target = torch.randn(4, 3).log_softmax(1), torch.full((4,), 2)
    loss, total = native(aten.nll_loss_forward, x, target, None, 1, 2)
    assert loss.isnan()
    assert total == 0


def view(t: Tensor) -> View:
    base = torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())
    return View(Storage(base.numel(), base), t.storage_offset(), tuple(t.shape), t.stride(), t.dtype)


@pytest.mark.parametrize("rows", [5, 3000])
@pytest.mark.parametrize("index", [3, -1, 2**62, -(2**62)])
def test_an_index_out_of_range_is_reported_and_not_followed(rows: int, index: int, isa: str) -> None:
    x, target = torch.randn(rows, 3), torch.zeros(rows, dtype=torch.int64)
    target[rows - 2], target[rows - 1] = index, 7
    loss, total, dx = torch.empty(rows), torch.empty(()), torch.full((rows, 3), float("nan"))
    low = Lowering()
    given = view(x), view(target), None, 0, -100
    assert lower(low, "nll_loss_forward.default", [view(loss), view(total)], given, {})
    back = view(torch.ones(rows)), *given, view(total)
    assert lower(low, "nll_loss_backward.default", view(dx), back, {})
    memory: dict[int, Tensor] = {}
    run_nodes(low.nodes, memory)
    bad = memory[id(low.nodes[0].outs[-1].storage)].view(torch.int64)
    assert bad.tolist() == [-(2**63) if index == -1 else index]
    error = ERRORS["nll_loss"](low.nodes[0], index)
    assert isinstance(error, IndexError)
    assert str(error) == f"Target {index} is out of bounds."
    assert torch.equal(loss[:-2], -x[:-2, 0])
    assert loss[-2:].tolist() == [0, 0]
    assert dx[-2:].abs().max() == 0
    target[rows - 2 :] = 1
    run_nodes(low.nodes, memory := {})
    bad = memory[id(low.nodes[0].outs[-1].storage)].view(torch.int64)
    assert bad.tolist() == [-1]


def test_same_bits_for_every_thread_count(isa: str) -> None:
    x, many = torch.randn(3000, 10), torch.randn(60, 1000)
    target = torch.randint(10, (3000,))

    def results() -> list[Tensor]:
        y = native(aten._log_softmax, x, 1, False)
        loss, total = native(aten.nll_loss_forward, y, target, torch.rand(10).fill_(0.3), 1, -100)
        g = native(aten.nll_loss_backward, loss, y, target, None, 1, -100, total)
        z = native(aten._softmax, many, 1, False)
        return [
            y,
            loss,
            total,
            g,
            z,
            native(aten._log_softmax_backward_data, g, y, 1, torch.float32),
            native(aten._softmax_backward_data, many, z, 1, torch.float32),
            native(aten._softmax, many, 0, False),
        ]

    assert_reproducible(results, x.device)
