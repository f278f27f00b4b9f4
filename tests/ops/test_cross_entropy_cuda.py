"""Cross-entropy on CUDA: errors reported late by its kernels, streams and capture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captured import assert_capturable
from cuda_emulation import Emulation
from fastnn import _dispatch, functional

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


def test_a_target_out_of_range_is_reported_at_the_next_call(cuda_device: torch.device) -> None:
    x = torch.randn(4, 10, device=cuda_device)
    bad, good = (torch.tensor([0, 1, k, 2], device=cuda_device) for k in (10, 9))
    loss = functional.cross_entropy(x, bad)
    if cuda_device.type == "cuda":
        torch.cuda.synchronize()
    assert loss.isnan()
    with pytest.raises(IndexError, match=r"Target 10 is out of bounds\."):
        functional.cross_entropy(x, good)
    assert functional.cross_entropy(x, good).isfinite()


WEIGHTS = {
    "zero": [0.0, 0.0, 0.0],
    "infinite": [1.0, math.inf, 2.0],
    "all infinite": [math.inf] * 3,
    "both": [math.inf, 1.0, -math.inf],
    "nan": [math.nan, 1.0, 0.0],
}


@pytest.mark.parametrize("kind", ["index", "probabilities", "infinite probabilities"])
@pytest.mark.parametrize("shape", [(9, 3), (9, 300), (2, 3, 4)])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_class_weights_that_are_zero_or_not_finite(
    weights: str, shape: tuple[int, ...], kind: str, cuda_device: torch.device
) -> None:
    """The loss is not always torch's (docs/numerics.md), its gradient is."""
    x, index = torch.randn(shape), torch.randint(3, (shape[0], *shape[2:]))
    target = index if kind == "index" else torch.randn(shape).softmax(1)
    if kind == "infinite probabilities":
        target[:, 1] = math.inf
    weight = torch.ones(shape[1])
    weight[:3] = torch.tensor(WEIGHTS[weights])
    for reduction, smoothing in itertools.product(("none", "mean", "sum"), (0.0, 0.2, 1.0)):
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
        ours, theirs = (x.to(d, copy=True).requires_grad_() for d in (cuda_device, "cpu"))
        loss = functional.cross_entropy(ours, target.to(cuda_device), weight.to(cuda_device), **options)
        expected = F.cross_entropy(theirs, target, weight, **options)
        found = loss.detach().cpu()
        is_torchs = found.isclose(expected, rtol=1e-4, atol=1e-5, equal_nan=True)
        unlike = found.isnan() & expected.isinf()
        if weights == "zero" and reduction == "mean" and smoothing > 0:
            unlike |= found.isinf() & expected.isnan()
        assert (is_torchs | unlike).all()
        loss.sum().backward()
        expected.sum().backward()
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.cuda
def test_capture_and_streams() -> None:
    x = torch.randn(64, 1000, device="cuda", requires_grad=True)
    target = torch.randint(1000, (64,), device="cuda")

    def run() -> list[Tensor]:
        loss = functional.cross_entropy(functional.relu(x), target)
        return [loss.detach(), *torch.autograd.grad(loss, x)]

    assert_capturable(run)


def test_nobody_waits_for_the_device_with_the_gil(emulated: Emulation) -> None:
    """The stream may wait for another Python thread."""
    kernels, good = emulated.cuda, torch.tensor([0, 3, 2, 1])
    scratch = torch.empty(kernels.cross_entropy_scratch, dtype=torch.float64)
    x, loss = torch.randn(4, 10), torch.empty(())
    options = (-100, 1, 0.0, 0.0, scratch)
    emulated.checks.take_waits()
    kernels.cross_entropy_forward(x, good, None, loss, None, *options, True)
    kernels.cross_entropy_chunk(x, 0, good, None, loss, None, *options, True)
    kernels.raise_bad_index(x)
    assert emulated.checks.take_waits() == (3, 0)


def test_python_is_called_before_an_index_is_raised(emulated_cuda: Emulation) -> None:
    called: list[str] = []
    for name in ("first", "second"):
        emulated_cuda.cuda.on_bad_index(lambda name=name: called.append(name))
        functional.cross_entropy(torch.randn(4, 10), torch.tensor([0, 1, 2, 10]))
        with pytest.raises(IndexError):
            emulated_cuda.cuda.raise_told_bad_index()
    assert called == ["first", "second"]


@pytest.fixture
def capturing(emulated: Emulation) -> Iterator[Callable[[int, bool], None]]:
    yield emulated.checks.set_capturing
    emulated.checks.set_capturing(0, False)


def test_nobody_waits_for_a_stream_that_is_captured(
    emulated: Emulation, capturing: Callable[[int, bool], None]
) -> None:
    checks, x = emulated.checks, torch.randn(4, 10)
    legacy_beside_a_captured_one, other_error = 906, 1
    checks.take_waits()
    for answer, active in ((0, True), (legacy_beside_a_captured_one, False)):
        capturing(answer, active)
        emulated.cuda.raise_bad_index(x)
        assert checks.take_waits() == (0, 0)
        assert checks.last_error() == 0
    capturing(other_error, False)
    with pytest.raises(RuntimeError, match="cross_entropy: CUDA error: no capture"):
        emulated.cuda.raise_bad_index(x)


def test_only_the_first_chunk_waits_for_the_device(emulated: Emulation) -> None:
    kernels, bad = emulated.cuda, torch.tensor([0, 1, 2, 10])
    scratch = torch.empty(kernels.cross_entropy_scratch, dtype=torch.float64)
    x, loss, options = torch.randn(2, 10), torch.empty(()), (-100, 1, 0.0, 0.0, scratch)
    emulated.checks.take_waits()
    with pytest.raises(IndexError, match=r"Target 10 is out of bounds\."):
        kernels.cross_entropy_chunk(x, 0, bad, None, loss, None, *options, True)
    kernels.cross_entropy_chunk(x, 2, bad, None, loss, None, *options, True)
    assert emulated.checks.take_waits() == (1, 0)
    kernels.cross_entropy_chunk(x, 0, bad, None, loss, None, *options, False)
    assert emulated.checks.take_waits() == (0, 0)
    with pytest.raises(IndexError, match=r"Target 10 is out of bounds\."):
        kernels.raise_bad_index(x)
