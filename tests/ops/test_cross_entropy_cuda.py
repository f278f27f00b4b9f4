"""Cross-entropy on CUDA: what its kernels cannot tell at once, streams and capture."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from captured import assert_capturable
from cuda_emulation import Emulation
from fastnn import _dispatch, functional

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


def test_a_target_out_of_range_is_told_at_the_next_call(cuda_device: torch.device) -> None:
    x = torch.randn(4, 10, device=cuda_device)
    bad, good = (torch.tensor([0, 1, k, 2], device=cuda_device) for k in (10, 9))
    loss = functional.cross_entropy(x, bad)
    if cuda_device.type == "cuda":
        torch.cuda.synchronize()
    assert loss.isnan()
    with pytest.raises(IndexError, match=r"Target 10 is out of bounds\."):
        functional.cross_entropy(x, good)
    assert functional.cross_entropy(x, good).isfinite()


@pytest.mark.cuda
def test_capture_and_streams() -> None:
    x = torch.randn(64, 1000, device="cuda", requires_grad=True)
    target = torch.randint(1000, (64,), device="cuda")

    def run() -> list[Tensor]:
        loss = functional.cross_entropy(functional.relu(x), target)
        return [loss.detach(), *torch.autograd.grad(loss, x)]

    assert_capturable(run)


def test_nobody_waits_for_the_device_with_the_gil(emulated: Emulation) -> None:
    """What the stream waits for may need another thread of Python."""
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
