"""Softmax cross-entropy against torch in float64: values, gradients, edges."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import _backend
from fastnn import functional as FF
from fastnn.ops.cross_entropy import cross_entropy_torch

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CLASSES = [1, 2, 3, 7, 10, 15, 16, 17, 31, 33, 100, 1000, 4099]
REDUCTIONS = ["mean", "sum", "none"]

# Per-element rounding: input to the exponential, exponential, sum, product and the store are some eps each,
# and the sums over classes are blocked so that they add a few more. Measured: below 4.
ROUNDINGS = 8


def reference(
    input: Tensor, target: Tensor, weight: Tensor | None, grad: Tensor, **options: Any
) -> list[Tensor]:
    """Loss and gradient by torch's own ops in float64."""
    x = input.detach().double().requires_grad_()
    t = target.double() if target.is_floating_point() else target
    loss = cross_entropy_torch(x, t, None if weight is None else weight.double(), **options)
    loss.backward(grad.double().expand_as(loss))
    assert x.grad is not None
    return [loss.detach(), x.grad]


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, magnitude: float) -> None:
    """Both within ROUNDINGS * eps of the largest term that enters, and 16-bit subnormals within one step."""
    # In float64 the reference rounds too, and it sums the classes of images one after the other.
    roundings = ROUNDINGS * (8 if dtype == torch.float64 else 1)
    bound = torch.finfo(dtype).eps * (roundings * magnitude + torch.finfo(dtype).tiny)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=bound, equal_nan=True)


def check(input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any) -> None:
    """Compare native loss and gradient with the reference, with an incoming gradient that is not 1."""
    x = input.detach().requires_grad_()
    decisions: list[_backend.Decision] = []
    with _backend.recording(decisions.append):
        loss = FF.cross_entropy(x, target, weight, **options)
        grad = torch.full_like(loss, 1.5) if loss.dim() == 0 else torch.rand_like(loss) + 0.5
        (gradient,) = torch.autograd.grad(loss, x, grad)
    if _backend.cpu is not None:
        assert {d.reason for d in decisions} == {None}
    expected_loss, expected_gradient = reference(input, target, weight, grad.detach(), **options)
    assert loss.dtype == gradient.dtype == input.dtype
    assert gradient.shape == input.shape
    # However small the loss: the logarithm is taken of a sum of at least 1, once a row.
    floor = input.numel() / input.shape[min(1, input.dim() - 1)] if options.get("reduction") == "sum" else 1.0
    assert_near(loss.detach(), expected_loss, input.dtype, max(float(expected_loss.abs().max()), floor))
    assert_near(
        gradient, expected_gradient, input.dtype, gradient_magnitude(input, expected_gradient, options)
    )
    with torch.no_grad():
        assert torch.equal(FF.cross_entropy(x, target, weight, **options), loss)


def gradient_magnitude(input: Tensor, gradient: Tensor, options: dict[str, Any]) -> float:
    """The gradient subtracts terms up to 1 (times the weights) of a row; with few classes they cancel."""
    rows = input.numel() // input.shape[min(1, input.dim() - 1)]
    return max(float(gradient.abs().max()), 3.0 / (rows if options.get("reduction", "mean") == "mean" else 1))


def example(shape: tuple[int, ...], dtype: torch.dtype, kind: str = "index") -> tuple[Tensor, Tensor]:
    x = (torch.randn(shape) * 3).to(dtype)
    class_dim = min(1, len(shape) - 1)
    if kind == "probabilities":
        return x, torch.randn(shape).softmax(class_dim).to(dtype)
    return x, torch.randint(shape[class_dim], shape[:class_dim] + shape[class_dim + 1 :])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", CLASSES)
def test_every_class_count(isa: str, dtype: torch.dtype, classes: int) -> None:
    x, t = example((37 if classes < 1000 else 5, classes), dtype)
    check(x, t)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [5, 40, 131])
@pytest.mark.parametrize("kind", ["index", "probabilities", "images"])
def test_options_crossed(isa: str, dtype: torch.dtype, classes: int, kind: str) -> None:
    x, t = example((3, classes, 5, 7) if kind == "images" else (19, classes), dtype, kind)
    if kind != "probabilities":
        t.view(-1)[::4] = -1
    w = (torch.rand(classes) + 0.5).to(dtype)
    for reduction, smoothing, z_loss, weight in itertools.product(
        REDUCTIONS, (0.0, 0.2, 1.0), (0.0, 0.01), (None, w)
    ):
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing, "z_loss": z_loss}
        if kind != "probabilities":
            options["ignore_index"] = -1
        check(x, t, weight, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["index", "probabilities"])
@pytest.mark.parametrize(
    "shape", [(9,), (1, 9), (6, 4, 3), (2, 3, 1), (2, 1, 5), (2, 70, 33), (2, 3, 2, 3, 2)]
)
def test_shapes(isa: str, shape: tuple[int, ...], kind: str, reduction: str) -> None:
    x, t = example(shape, torch.float32, kind)
    check(x, t, reduction=reduction)


def test_uint8_targets_and_255_ignored(isa: str) -> None:
    x, t = example((21, 9), torch.float32)
    t = t.to(torch.uint8)
    t[3] = 255
    check(x, t, ignore_index=255)


def layouts(x: Tensor) -> dict[str, Tensor]:
    n, c = x.shape
    rows = torch.full((n, c + 3), math.nan, dtype=x.dtype)
    rows[:, 1 : c + 1] = x
    shifted = torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(n, c)
    every_other = torch.stack([x, x + 1], dim=2)[:, :, 0]
    return {
        "rows apart": rows[:, 1 : c + 1],
        "misaligned": shifted,
        "transposed": x.t().contiguous().t(),
        "every other": every_other,
        "expanded rows": x[:1].expand(n, c),
        "expanded classes": x[:, :1].expand(n, c),
        "reversed storage": torch.flip(x, (0,)),
    }


@pytest.mark.parametrize("classes", [3, 10, 17, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_alignment(isa: str, dtype: torch.dtype, classes: int) -> None:
    x, t = example((19, classes), dtype)
    for view in layouts(x).values():
        check(view, t)
        check(view, layouts(view.detach().softmax(1))["rows apart"])
    wide = torch.stack([t, t], dim=1)
    check(x, wide[:, 0], torch.rand(2 * classes).to(dtype)[::2])


def test_permuted_images(isa: str) -> None:
    x, t = example((2, 4, 5, 3), torch.float32)
    check(x.to(memory_format=torch.channels_last), t)
    check(x.permute(0, 1, 3, 2), t.permute(0, 2, 1))


@pytest.mark.parametrize("classes", [4, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_stable_for_any_finite_logits(isa: str, dtype: torch.dtype, classes: int) -> None:
    big = {torch.float16: 1e4}.get(dtype, 1e38)
    x = torch.zeros(3, classes, dtype=dtype)
    x[0, 0], x[1, 1], x[2] = big, -big, big
    t = torch.tensor([0, 0, classes - 1])
    check(x, t, reduction="none")
    check(x, t)


@pytest.mark.parametrize("classes", [4, 40, 5000])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_inf_logits_make_their_row_nan(isa: str, bad: float, classes: int) -> None:
    for place in (0, classes // 2, classes - 1):
        x = torch.randn(3, classes)
        x[1, place] = bad
        x.requires_grad_()
        loss = FF.cross_entropy(x, torch.tensor([1, 2, 3]), reduction="none")
        loss.sum().backward()
        assert x.grad is not None
        assert loss.isnan().tolist() == [False, True, False]
        assert x.grad.isnan().all(dim=1).tolist() == [False, True, False]
        assert not x.grad[[0, 2]].isnan().any()


@pytest.mark.parametrize("classes", [4, 40, 9000])
def test_minus_inf_logits(isa: str, classes: int) -> None:
    x = torch.randn(2, classes)
    x[:, : classes - 2] = -math.inf
    t = torch.tensor([classes - 1, classes - 2])
    check(x, t)
    masked = torch.full((1, classes), -math.inf)
    assert FF.cross_entropy(x, torch.tensor([0, 1]), reduction="none").tolist() == [math.inf] * 2
    assert math.isnan(FF.cross_entropy(masked, t[:1]).item())


@pytest.mark.parametrize("classes", [3, 70])
def test_ignored_rows_are_not_looked_at(isa: str, classes: int) -> None:
    x = torch.randn(5, classes)
    x[2] = math.nan
    x.requires_grad_()
    t = torch.tensor([0, 1, -100, 2, 0])
    loss = FF.cross_entropy(x, t, label_smoothing=0.1, z_loss=0.1)
    loss.backward()
    keep = [0, 1, 3, 4]
    torch.testing.assert_close(loss, FF.cross_entropy(x[keep], t[keep], label_smoothing=0.1, z_loss=0.1))
    assert x.grad is not None
    assert not x.grad[2].any()


def test_nothing_counts() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    t = torch.full((4,), -100)
    for smoothing in (0.0, 0.1):
        assert FF.cross_entropy(x, t, label_smoothing=smoothing).isnan()
        assert FF.cross_entropy(x, t, reduction="sum", label_smoothing=smoothing) == 0
    FF.cross_entropy(x, t).backward()
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, requires_grad=True)
    for t in (torch.empty(shape[:1] + shape[2:], dtype=torch.long), torch.empty(shape)):
        assert FF.cross_entropy(x, t).isnan()
        assert FF.cross_entropy(x, t, reduction="sum") == 0
        assert FF.cross_entropy(x, t, reduction="none").shape == shape[:1] + shape[2:]


def test_deprecated_arguments_mean_what_they_mean_in_torch() -> None:
    x, t = example((4, 3), torch.float32)
    for size_average, reduce in itertools.product((None, True, False), repeat=2):
        if size_average is None and reduce is None:
            continue
        with pytest.warns(UserWarning, match="deprecated"):
            actual = FF.cross_entropy(x, t, size_average=size_average, reduce=reduce)
        with pytest.warns(UserWarning, match="deprecated"):
            torch.testing.assert_close(
                actual, F.cross_entropy(x, t, size_average=size_average, reduce=reduce)
            )


X = torch.zeros(5, 3)
LONG = torch.tensor([0, 1, 2, 1, 0])
ERRORS: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "too large": ((X, torch.tensor([0, 1, 3, 1, 0])), {}, IndexError, r"^Target 3 is out of bounds\.$"),
    "negative": ((X, torch.tensor([0, 1, -1, 1, 0])), {}, IndexError, r"^Target -1 is out of bounds\.$"),
    "uint8": ((X, LONG.byte() + 7), {}, IndexError, r"^Target 7 is out of bounds\.$"),
    "int32": ((X, LONG.int()), {}, RuntimeError, "Long or Byte, but got Int"),
    "batch": (
        (X, LONG[:4]),
        {},
        ValueError,
        r"cross_entropy: target of shape \(4,\) has batch size 4, expected 5",
    ),
    "rank": ((X, LONG[:, None]), {}, RuntimeError, r"cross_entropy: target .*\(5, 1\), expected \(5,\)"),
    "spatial": (
        (torch.zeros(2, 3, 4), torch.zeros(2, 5, dtype=torch.long)),
        {},
        RuntimeError,
        r"cross_entropy: target .*\(2, 5\), expected \(2, 4\)",
    ),
    "probabilities": (
        (X, torch.zeros(5, 2)),
        {},
        RuntimeError,
        r"probabilities.*\(5, 2\), expected \(5, 3\)",
    ),
    "weight": (
        (X, LONG, torch.ones(4)),
        {},
        RuntimeError,
        r"cross_entropy: weight .*\(4,\), expected \(3,\)",
    ),
    "weight rank": (
        (X, LONG, torch.ones(3, 1)),
        {},
        RuntimeError,
        r"weight has shape \(3, 1\), expected \(3,\)",
    ),
    "smoothing": ((X, LONG), {"label_smoothing": 1.5}, RuntimeError, "label_smoothing must be between"),
    "reduction": (
        (X, LONG),
        {"reduction": "average"},
        ValueError,
        "average is not a valid value for reduction",
    ),
    "ignored probability": ((X, X), {"ignore_index": 1}, RuntimeError, "ignore_index is not supported"),
    "no tensor": ((X, [0, 1, 2, 1, 0]), {}, TypeError, r"'target' \(position 2\) must be Tensor, not list"),
    "no target": ((X, None), {}, TypeError, r"'target' \(position 2\) must be Tensor, not NoneType"),
    "fractional index": ((X, LONG), {"ignore_index": 2.0}, TypeError, "'ignore_index' .* must be int"),
    "huge index": ((X, LONG), {"ignore_index": 2**63}, ValueError, "Overflow when unpacking long"),
}


@pytest.mark.skipif(_backend.cpu is None, reason="messages of the compiled module")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str, grad: bool) -> None:
    args, options, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        FF.cross_entropy(args[0].clone().requires_grad_(grad), *args[1:], **options)
    with pytest.raises(error):
        F.cross_entropy(*args, **options)


@pytest.mark.skipif(_backend.cpu is None, reason="compares thread counts of the compiled module")
@pytest.mark.parametrize("shape", [(1001, 10), (301, 333), (7, 9001), (3, 19, 517)])
def test_bitwise_the_same_for_every_thread_count(isa: str, shape: tuple[int, ...]) -> None:
    x, t = example(shape, torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = x.clone().requires_grad_()
            loss = FF.cross_entropy(leaf, t, z_loss=0.1)
            loss.backward()
            results.append((loss.detach(), leaf.grad))
    finally:
        torch.set_num_threads(threads)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])
