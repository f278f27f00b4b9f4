"""The ops in WebAssembly against float64, run by Node."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import assert_near
from linear_cases import SHAPES, problem
from reference import assert_close_sum
from torch import Tensor

from web_build import Node, WebError

F32 = torch.float32
EPS = torch.finfo(F32).eps


def linear(node: Node, x: Tensor, w: Tensor, b: Tensor | None, relu: bool = False) -> Tensor:
    (m, k), n = x.shape, w.shape[0]
    return node("linear", {"x": x, "weight": w, "bias": b, "m": m, "k": k, "n": n, "relu": relu}).view(m, n)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_matches_float64(shape: tuple[int, int, int], node: Node) -> None:
    for bias, relu in ((False, False), (True, True)):
        x, w, b, _ = problem(shape, F32, bias=bias)
        y = linear(node, x, w, b, relu)
        z, magnitude = x.double() @ w.double().t(), x.double().abs() @ w.double().abs().t()
        if b is not None:
            z, magnitude = z + b.double(), magnitude + b.double().abs()
        assert_close_sum(y, z.relu() if relu else z, magnitude, shape[2])


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_linear_of_special_values(special: float, node: Node) -> None:
    for k in (31, 400):
        x, w = (torch.randint(-3, 4, (rows, k)).to(F32) for rows in (9, 50))
        x[0, 0] = x[3, 16] = x[8, 30] = special
        w[5, 7] = special
        b = torch.randn(50)
        for relu in (False, True):
            z = F.linear(x.double(), w.double(), b.double())
            want = (z.relu() if relu else z).to(F32)
            torch.testing.assert_close(
                linear(node, x, w, b, relu), want, equal_nan=True, rtol=8 * EPS, atol=2e-6
            )


def cross_entropy(node: Node, x: Tensor, t: Tensor) -> tuple[float, Tensor]:
    got = node("crossEntropy", {"logits": x, "labels": t.int(), "classes": x.shape[1]})
    return got["loss"], got["gradient"].view(x.shape)


def check_cross_entropy(node: Node, x: Tensor, t: Tensor) -> None:
    loss, gradient = cross_entropy(node, x, t)
    exact = x.double().requires_grad_()
    want = F.cross_entropy(exact, t)
    (want_gradient,) = torch.autograd.grad(want, exact)
    want = want.detach()
    rows = int((t != -100).sum())
    assert_near(torch.tensor(loss, dtype=F32), want, x, max(float(want), 1.0))
    largest = float(want_gradient.abs().max()) if x.numel() else 0.0
    assert_near(gradient, want_gradient, x, max(largest, 3.0 / max(rows, 1)))


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 10, 15, 16, 17, 31, 33, 65, 100, 257, 1000, 4099])
def test_cross_entropy_matches_float64(classes: int, node: Node) -> None:
    rows = 70 if classes < 500 else 5
    x, t = torch.randn(rows, classes) * 3, torch.randint(classes, (rows,))
    check_cross_entropy(node, x, t)
    t[0] = -100
    check_cross_entropy(node, x, t)


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf, 1e4, -1e4])
def test_cross_entropy_of_special_values(special: float, node: Node) -> None:
    x, t = torch.randn(5, 10), torch.arange(5)
    x[1, 7] = x[2, 2] = special
    loss, gradient = cross_entropy(node, x, t)
    exact = x.double().requires_grad_()
    want = F.cross_entropy(exact, t)
    (want_gradient,) = torch.autograd.grad(want, exact)
    torch.testing.assert_close(
        torch.tensor(loss, dtype=torch.float64), want.detach(), equal_nan=True, rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(gradient.double(), want_gradient, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_cross_entropy_where_no_row_counts(node: Node) -> None:
    for rows in (0, 3):
        loss, gradient = cross_entropy(node, torch.randn(rows, 4), torch.full((rows,), -100))
        assert math.isnan(loss)
        assert gradient.shape == (rows, 4)


@pytest.mark.parametrize("label", [3, -1, 2**31 - 1])
def test_a_label_that_is_not_a_class(label: int, node: Node) -> None:
    with pytest.raises(WebError, match=f"RangeError: cross_entropy: target {label} is out of bounds"):
        cross_entropy(node, torch.randn(2, 3), torch.tensor([0, label]))


SIZES = [0, 1, 3, 4, 5, 127, 1024, 1027, 5000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_matches_float64(size: int, decoupled: bool, node: Node) -> None:
    options: dict[str, Any] = {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-3}
    exact = torch.nn.Parameter(torch.randn(size).double())
    cls = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = cls([exact], weight_decay=0.1, **options)
    p, m, v = exact.detach().float(), torch.zeros(size), torch.zeros(size)
    for step in range(1, 5):
        grad = torch.randn(size)
        exact.grad = grad.double()
        optimizer.step()
        args = {"param": p, "grad": grad, "expAvg": m, "expAvgSq": v, "step": step, "decoupled": decoupled}
        got = node("adam", args | options | {"weightDecay": 0.1})
        p, m, v = got["param"], got["expAvg"], got["expAvgSq"]
    # A step divides by at least eps, compared with which the rounding of the moments is small.
    torch.testing.assert_close(p.double(), exact.detach(), rtol=8 * EPS, atol=64 * EPS)
    state = optimizer.state[exact]
    torch.testing.assert_close(m.double(), state["exp_avg"], rtol=0, atol=8 * EPS)
    torch.testing.assert_close(v.double(), state["exp_avg_sq"], rtol=16 * EPS, atol=EPS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "dampening": 0.3}], ids=str
)
def test_sgd_matches_float64(size: int, options: dict[str, Any], node: Node) -> None:
    exact = torch.nn.Parameter(torch.randn(size).double())
    optimizer = torch.optim.SGD([exact], lr=0.1, weight_decay=0.1, **options)
    p, buffer = exact.detach().float(), torch.full((size,), math.nan) if options else None
    for step in range(4):
        grad = torch.randn(size)
        exact.grad = grad.double()
        optimizer.step()
        args = {"param": p, "grad": grad, "buffer": buffer, "first": step == 0, "lr": 0.1, "weightDecay": 0.1}
        got = node("sgd", args | options)
        p, buffer = got["param"], got["buffer"]
    torch.testing.assert_close(p.double(), exact.detach(), rtol=16 * EPS, atol=16 * EPS)


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        (
            "linear",
            {"x": [0.0] * 5, "weight": [0.0] * 6, "m": 2, "k": 3, "n": 2},
            "x has 5 values, expected 6",
        ),
        ("linear", {"x": [], "weight": [], "m": -1, "k": 3, "n": 2}, "m must be an integer of at least 0"),
        ("crossEntropy", {"logits": [0.0] * 5, "labels": [0, 1], "classes": 2}, "logits has 5 values"),
        ("crossEntropy", {"logits": [0.0] * 4, "labels": [0, 0.5], "classes": 2}, "0.5 at 1 is no class"),
        ("crossEntropy", {"logits": [], "labels": [], "classes": 0}, "classes must be an integer"),
        ("adam", {"param": torch.zeros(3), "grad": torch.zeros(2)}, "grad has 2 values, expected 3"),
        (
            "sgd",
            {"param": torch.zeros(3), "grad": torch.zeros(3), "momentum": 0.9},
            "momentum needs a buffer",
        ),
    ],
)
def test_arguments_that_do_not_fit(op: str, args: dict[str, Any], message: str, node: Node) -> None:
    with pytest.raises(WebError, match=message):
        node(op, args)


def test_memory_that_ends_is_an_error(node: Node) -> None:
    def ask_for_too_much() -> int:
        for bytes_wanted in (2**32 - 1, 2**32, 2**31 + 2**30, 2**60):
            with pytest.raises(WebError, match="OutOfMemoryError: fastnn: out of memory"):
                node("allocate", bytes_wanted)
        with pytest.raises(WebError, match="OutOfMemoryError"):
            node("mlp", [100_000, 100_000], {}, [])
        memory: int = node("memoryBytes")
        return memory

    first = ask_for_too_much()  # the small parts of a large one may have grown the memory
    assert ask_for_too_much() == first
    node("repeat", 3000, "mlp", [100_000, 100_000], {}, [])  # the stack of 1 MB is also released
    test_linear_matches_float64((9, 49, 33), node)


def test_a_browser_without_simd_is_reported(node: Node) -> None:
    with pytest.raises(WebError, match="needs WebAssembly with SIMD, which this browser lacks"):
        node("withoutSimd")
