"""Softmax cross-entropy against torch in float64, with every kernel: values, gradients, edges."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import check
from reference import DTYPES
from torch import Tensor

from every_kernel import assert_reproducible, emulating
from fastnn import _dispatch
from fastnn import functional as FF

# Around vectors; on CUDA around the limits between the kernels (64, 512), and longer than shared memory.
CLASSES = [1, 2, 3, 7, 10, 15, 16, 17, 31, 33, 65, 100, 256, 257, 511, 512, 513, 1000, 4099, 32_001, 262_147]
REDUCTIONS = ["mean", "sum", "none"]


def example(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str, kind: str = "index"
) -> tuple[Tensor, Tensor]:
    x = (torch.randn(shape) * 3).to(dtype).to(device)
    class_dim = min(1, len(shape) - 1)
    if kind == "probabilities":
        return x, torch.randn(shape).softmax(class_dim).to(dtype).to(device)
    return x, torch.randint(shape[class_dim], shape[:class_dim] + shape[class_dim + 1 :], device=device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", CLASSES)
def test_every_class_count(classes: int, dtype: torch.dtype, every_device: torch.device) -> None:
    rows = 70 if classes < 500 else 5 if classes < 5000 else 2 if emulating() else 3
    x, t = example((rows, classes), dtype, every_device)
    if classes < 100_000 or not emulating():
        check(x, t)
    t[0] = -100
    check(x, t, reduction="sum")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [5, 40, 131])
@pytest.mark.parametrize("kind", ["index", "probabilities", "images"])
def test_options_crossed(dtype: torch.dtype, classes: int, kind: str, every_device: torch.device) -> None:
    shape = (3, classes, 5, 7) if kind == "images" else (19, classes)
    x, t = example(shape, dtype, every_device, kind)
    if kind != "probabilities":
        t.view(-1)[::4] = -1
    w = (torch.rand(classes) + 0.5).to(dtype).to(every_device)
    crossed = itertools.product(REDUCTIONS, (0.0, 0.2, 1.0), (0.0, 0.01), (None, w))
    # Emulated kernels are slow, and those for other dtypes differ only within a row.
    step = 5 if emulating() and dtype != torch.float32 else 1
    for reduction, smoothing, z_loss, weight in itertools.islice(crossed, 0, None, step):
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing, "z_loss": z_loss}
        if kind != "probabilities":
            options["ignore_index"] = -1
        check(x, t, weight, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["index", "probabilities"])
@pytest.mark.parametrize(
    "shape", [(9,), (1, 9), (6, 4, 3), (2, 3, 1), (2, 1, 5), (2, 70, 33), (2, 3, 2, 3, 2)]
)
def test_every_shape_matches_float64(
    shape: tuple[int, ...], kind: str, reduction: str, every_device: torch.device
) -> None:
    x, t = example(shape, torch.float32, every_device, kind)
    check(x, t, reduction=reduction)


def test_uint8_targets_and_255_ignored(every_device: torch.device) -> None:
    x, t = example((21, 9), torch.float32, every_device)
    t = t.to(torch.uint8)
    t[3] = 255
    check(x, t, ignore_index=255)


def layouts(x: Tensor) -> dict[str, Tensor]:
    n, c = x.shape
    rows = torch.full((n, c + 3), math.nan, dtype=x.dtype, device=x.device)
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
def test_strides_and_alignment(dtype: torch.dtype, classes: int, every_device: torch.device) -> None:
    x, t = example((19, classes), dtype, every_device)
    for view in layouts(x).values():
        check(view, t)
        check(view, layouts(view.detach().softmax(1))["rows apart"])
    wide = torch.stack([t, t], dim=1)
    check(x, wide[:, 0], torch.rand(2 * classes).to(dtype).to(every_device)[::2])


def test_permuted_images(every_device: torch.device) -> None:
    x, t = example((2, 4, 5, 3), torch.float32, every_device)
    check(x.to(memory_format=torch.channels_last), t)
    check(x.permute(0, 1, 3, 2), t.permute(0, 2, 1))


@pytest.mark.parametrize("classes", [4, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_stable_for_any_finite_logits(dtype: torch.dtype, classes: int, every_device: torch.device) -> None:
    big = {torch.float16: 1e4}.get(dtype, 1e38)
    x = torch.zeros(3, classes, dtype=dtype, device=every_device)
    x[0, 0], x[1, 1], x[2] = big, -big, big
    t = torch.tensor([0, 0, classes - 1], device=every_device)
    check(x, t, reduction="none")
    check(x, t)


@pytest.mark.skipif(_dispatch.cpu is None, reason="torch keeps them")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("classes", [10, 40, 100])
@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_gradient_has_no_subnormal_numbers(isa: str, scale: float, classes: int, dtype: torch.dtype) -> None:
    """They would make products slow."""
    tiny = torch.finfo(dtype).tiny
    x = torch.zeros(50, classes, dtype=dtype)
    x[:, 1:] = math.log(tiny) + torch.linspace(-1, 8, classes - 1, dtype=dtype)  # over 50 rows: about tiny
    x.requires_grad_()
    (FF.cross_entropy(x, torch.zeros(50, dtype=torch.int64)) * scale).backward()
    assert x.grad is not None
    size = x.grad[:, 1:].abs()
    assert ((size == 0) | (size >= tiny)).all()
    assert (size == 0).any()
    assert (size > 0).any()


@pytest.mark.parametrize("scale", [1e-39, 1e-42])
def test_subnormal_weights_and_probabilities_count(scale: float, every_device: torch.device) -> None:
    x, t = example((50, 10), torch.float32, every_device)
    weight = (torch.rand(10) + 0.5).mul(scale).to(every_device)
    expected = F.cross_entropy(x.double(), t, weight.double())
    torch.testing.assert_close(FF.cross_entropy(x, t, weight).double(), expected, rtol=1e-3, atol=0)
    q = example((50, 10), torch.float32, every_device, "probabilities")[1] * scale
    expected = F.cross_entropy(x.double(), q.double(), reduction="sum")
    # A loss that is subnormal itself has one more rounding.
    half_step = 0.5 * torch.finfo(torch.float32).smallest_normal * torch.finfo(torch.float32).eps
    loss = FF.cross_entropy(x, q, reduction="sum").double()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=half_step)


@pytest.mark.parametrize("classes", [4, 40, 5000])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_inf_logits_make_their_row_nan(bad: float, classes: int, every_device: torch.device) -> None:
    for place in (0, classes // 2, classes - 1):
        x = torch.randn(3, classes, device=every_device)
        x[1, place] = bad
        x.requires_grad_()
        loss = FF.cross_entropy(x, torch.tensor([1, 2, 3], device=every_device), reduction="none")
        loss.sum().backward()
        assert x.grad is not None
        assert loss.isnan().tolist() == [False, True, False]
        assert x.grad.isnan().all(dim=1).tolist() == [False, True, False]
        assert not x.grad[[0, 2]].isnan().any()


@pytest.mark.parametrize("classes", [4, 40, 9000])
def test_minus_inf_logits(classes: int, every_device: torch.device) -> None:
    x = torch.randn(2, classes, device=every_device)
    x[:, : classes - 2] = -math.inf
    t = torch.tensor([classes - 1, classes - 2], device=every_device)
    check(x, t)
    masked = torch.full((1, classes), -math.inf, device=every_device)
    hopeless = torch.tensor([0, 1], device=every_device)
    assert FF.cross_entropy(x, hopeless, reduction="none").tolist() == [math.inf] * 2
    assert math.isnan(FF.cross_entropy(masked, t[:1]).item())


NOT_FINITE = {
    "zero": [0.0, 1.0, 2.0],
    "all zero": [0.0, 0.0, 0.0],
    "inf": [1.0, math.inf, 2.0],
    "all inf": [math.inf] * 3,
    "-inf": [1.0, 2.0, -math.inf],
    "both": [math.inf, 1.0, -math.inf],
    "nan": [math.nan, 1.0, 0.0],
    "inf and zero": [math.inf, 0.0, 1.0],
}


@pytest.mark.parametrize("kind", ["index", "one-hot", "probabilities"])
@pytest.mark.parametrize("shape", [(9, 3), (9, 300), (2, 3, 4)])
@pytest.mark.parametrize("weights", NOT_FINITE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_class_weights_that_are_zero_or_not_finite(
    weights: str, shape: tuple[int, ...], kind: str, dtype: torch.dtype, isa: str
) -> None:
    x, t = example(shape, dtype, "cpu", "index")
    t %= 3  # the classes with weights
    if kind == "one-hot":
        t = F.one_hot(t, shape[1]).movedim(-1, 1).to(dtype).contiguous()
    elif kind == "probabilities":
        t = torch.randn(shape).softmax(1).to(dtype)
    weight = torch.ones(shape[1], dtype=dtype)
    weight[:3] = torch.tensor(NOT_FINITE[weights])
    for reduction, smoothing in itertools.product(REDUCTIONS, (0.0, 0.2, 1.0)):
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
        ours, theirs = (x.clone().requires_grad_() for _ in range(2))
        loss, expected = (
            FF.cross_entropy(ours, t, weight, **options),
            F.cross_entropy(theirs, t, weight, **options),
        )
        close = {"rtol": 3e-2, "atol": 3e-2} if dtype is torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(loss, expected, equal_nan=True, **close)
        loss.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, equal_nan=True, **close)


@pytest.mark.parametrize("classes", [3, 70])
def test_ignored_rows_are_not_looked_at(classes: int, every_device: torch.device) -> None:
    x = torch.randn(5, classes, device=every_device)
    x[2] = math.nan
    x.requires_grad_()
    t = torch.tensor([0, 1, -100, 2, 0], device=every_device)
    loss = FF.cross_entropy(x, t, label_smoothing=0.1, z_loss=0.1)
    loss.backward()
    keep = [0, 1, 3, 4]
    torch.testing.assert_close(loss, FF.cross_entropy(x[keep], t[keep], label_smoothing=0.1, z_loss=0.1))
    assert x.grad is not None
    assert not x.grad[2].any()


@pytest.mark.parametrize("classes", [3, 1000])
def test_all_ignored_gives_what_torch_gives(classes: int, device: torch.device) -> None:
    x = torch.randn(4, classes, device=device, requires_grad=True)
    t = torch.full((4,), -100, device=device)
    for smoothing in (0.0, 0.1):
        assert FF.cross_entropy(x, t, label_smoothing=smoothing).isnan()
        assert FF.cross_entropy(x, t, reduction="sum", label_smoothing=smoothing) == 0
    FF.cross_entropy(x, t).backward()
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("total", [0.0, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_ignored_rows_have_no_gradient_where_the_others_weigh_nothing(
    dtype: torch.dtype, total: float, every_device: torch.device
) -> None:
    x = torch.randn(3, 4).to(every_device, dtype).requires_grad_()
    weight = torch.full((4,), total, device=every_device, dtype=dtype)
    FF.cross_entropy(x, torch.tensor([0, -100, 2], device=every_device), weight).backward()
    assert x.grad is not None
    assert not x.grad[1].any()
    assert x.grad[::2].isnan().all()


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)])
def test_an_empty_batch_gives_what_torch_gives(shape: tuple[int, ...], device: torch.device) -> None:
    x = torch.empty(shape, device=device, requires_grad=True)
    for t in (torch.empty(shape[:1] + shape[2:], dtype=torch.long, device=device), x.detach()):
        assert FF.cross_entropy(x, t).isnan()
        assert FF.cross_entropy(x, t, reduction="sum") == 0
        assert FF.cross_entropy(x, t, reduction="none").shape == shape[:1] + shape[2:]


def test_deprecated_arguments_mean_what_they_mean_in_torch(device: torch.device) -> None:
    x, t = example((4, 3), torch.float32, device)
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
    "uint8": (
        (X, torch.tensor([0, 1, 7, 1, 0], dtype=torch.uint8)),
        {},
        IndexError,
        r"^Target 7 is out of bounds\.$",
    ),
    "int32": ((X, LONG.int()), {}, RuntimeError, "Long or Byte, but got Int|Long but found Int"),
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


@pytest.mark.skipif(_dispatch.cpu is None, reason="messages of the compiled module")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_of_torchs_types(
    case: str, grad: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dispatch, "check_at_once", True)
    args, options, error, message = ERRORS[case]
    first, *others = (a.to(device) if isinstance(a, Tensor) else a for a in args)
    with pytest.raises(error, match=message):
        FF.cross_entropy(first.clone().requires_grad_(grad), *others, **options)
    with pytest.raises(error):
        F.cross_entropy(*args, **options)


@pytest.mark.parametrize("shape", [(1001, 10), (301, 333), (7, 9001), (3, 19, 517)])
def test_the_same_bits_every_time(shape: tuple[int, ...], every_device: torch.device) -> None:
    if emulating():
        shape = (shape[0] % 100, *shape[1:])
    x, t = example(shape, torch.float32, every_device)
    x.requires_grad_()

    def run() -> list[Tensor]:
        loss = FF.cross_entropy(x, t, z_loss=0.1)
        return [loss.detach(), *torch.autograd.grad(loss, x)]

    assert_reproducible(run, every_device)
