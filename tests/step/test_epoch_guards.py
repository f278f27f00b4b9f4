"""`TrainStep.epoch` on the CPU: bad indices and rates, interrupts, hooks, devices without kernels."""

from __future__ import annotations

import contextlib
import copy
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

import fastnn
from fastnn import _dispatch
from train_epochs import a_step, assert_same_state, data, loop
from train_steps import chain

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


def _spoil_label(labels: Tensor, order: Tensor) -> None:
    labels[order[13]] = 5


def _spoil_row(labels: Tensor, order: Tensor) -> None:
    order[13] = 23


def _spoil_row_below(labels: Tensor, order: Tensor) -> None:
    order[13] = -1


@pytest.mark.parametrize("spoil", [_spoil_label, _spoil_row, _spoil_row_below])
@pytest.mark.parametrize("batch_size", [4, 15])
def test_a_bad_index_ends_the_epoch(spoil: Callable[[Tensor, Tensor], None], batch_size: int) -> None:
    """Only the steps before it have been taken. The data is surrounded by valid indices."""
    images, labels = (t[1:24] for t in data(25))
    order = torch.randperm(23)
    step = a_step()
    step(images, labels)
    twin = copy.deepcopy(step)
    before = order[: 13 // batch_size * batch_size].clone()
    spoil(labels, order)
    with pytest.raises(IndexError, match=r"out of (range|bounds)"):
        step.epoch(images, labels, batch_size, order)
    if len(before):
        loop(twin, images, labels, batch_size, before)
    assert_same_state(step, twin)


def test_a_bad_first_batch_leaves_nothing_behind() -> None:
    images, labels = data()
    step = a_step()
    decisions: list[_dispatch.Decision] = []
    for bad_labels, order in ((labels, torch.tensor([3, 23])), (labels + 5, torch.arange(23))):
        with _dispatch.recording(decisions.append), pytest.raises(IndexError):
            step.epoch(images, bad_labels, 8, order)
    assert decisions == []
    assert not step.optimizer.state
    assert not getattr(step.optimizer, "_opt_called", False)


def test_the_bad_entry_is_named() -> None:
    images, labels = data()
    order = torch.arange(23)
    order[13] = -3
    with pytest.raises(
        IndexError, match=r"permutation has the entry -3 in step 3, out of range for 23 images"
    ):
        a_step().epoch(images, labels, 4, order)


class Interrupted(Exception):
    """The exception raised by a signal handler."""


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Interrupts whatever runs after 50 ms of CPU time of this process."""
    before = signal.getsignal(signal.SIGPROF)

    def soon(call: Callable[[], None]) -> None:
        signal.signal(signal.SIGPROF, lambda *_: call())
        signal.setitimer(signal.ITIMER_PROF, 0.05)

    yield soon
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def a_long_epoch() -> tuple[fastnn.TrainStep, Tensor, Tensor, Tensor]:
    """Of several native calls; the alarm may still come later: tests repeat it until then."""
    images, labels = data()
    return a_step(), images, labels, torch.randint(23, (60000,))


def test_an_interrupt_ends_it_between_steps(alarm: Callable[[Callable[[], None]], None]) -> None:
    """Autograd knows what the step has written, and the optimizer has its own rate."""
    step, images, labels, order = a_long_epoch()
    step(images, labels)
    weight = step.model[1].weight
    kept = (weight * weight).sum()  # saves the weight

    def interrupt() -> None:
        raise Interrupted

    def train() -> None:
        while True:
            step.epoch(images, labels, 1, order, lr=torch.full((60000,), 1e-4))

    alarm(interrupt)
    with pytest.raises(Interrupted):
        train()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()
    assert step.optimizer.param_groups[0]["lr"] == 1e-2
    taken = {float(state["step"]) for state in step.optimizer.state.values()}
    assert len(taken) == 1
    assert taken.pop() > 1


def test_a_step_during_an_epoch_is_consistent(alarm: Callable[[Callable[[], None]], None]) -> None:
    step, images, labels, order = a_long_epoch()
    more: list[Tensor] = []
    alarm(lambda: more.append(step(images, labels)))
    epochs = 0
    while not more:
        losses = step.epoch(images, labels, 3, order)
        assert len(losses) == 20000
        epochs += 1
    assert len(more) == 1
    assert {float(state["step"]) for state in step.optimizer.state.values()} == {20000 * epochs + 1}


@contextlib.contextmanager
def called_within(function: Any, call: Callable[[], None]) -> Iterator[None]:
    """Make the first call of `function` call `call`."""

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is function.__code__:
            sys.setprofile(None)
            call()

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)


def test_a_step_within_a_native_call() -> None:
    """As from a signal handler that runs while the call queries torch: the step runs eagerly."""
    images, labels = data()
    step = a_step()
    step(images, labels)
    more: list[Tensor] = []
    decisions: list[_dispatch.Decision] = []
    call = called_within(increment_version, lambda: more.append(step(images, labels)))
    with _dispatch.recording(decisions.append), call:
        losses = step.epoch(images, labels, 3)
    assert len(losses) == 8
    assert len(more) == 1
    assert ("chain_step", "a call of this step is under way") in decisions
    assert {float(state["step"]) for state in step.optimizer.state.values()} == {10}
    assert all(p.isfinite().all() for p in step.model.parameters())


def test_disabled_it_is_a_loop() -> None:
    images, labels = data()
    with fastnn.disabled():
        seen = fastnn.explain(a_step().epoch, images, labels, 12)
    reasons = {d.reason for d in seen.decisions if d.op in ("train_epoch", "train_step")}
    assert reasons == {"fastnn is disabled"}


def test_on_a_device_without_kernels() -> None:
    model = chain([12, 5], dtype=torch.float32).to("meta")
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    images, labels = torch.empty(7, 12, device="meta"), torch.empty(7, dtype=torch.int64, device="meta")
    assert step(images, labels).is_meta
    assert step.epoch(images, labels, 3, torch.empty(7, dtype=torch.int64, device="meta")).shape == (3,)


def test_hooks_leave_it_to_the_loop() -> None:
    images, labels = data()
    step = a_step()
    twin = copy.deepcopy(step)
    seen: list[float] = []
    step.optimizer.register_step_post_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    order, rates = torch.randperm(23), [0.1, 0.02, 0.01]
    losses = step.epoch(images, labels, 8, order, lr=torch.tensor(rates, dtype=torch.float64))
    assert seen == rates
    assert step.optimizer.param_groups[0]["lr"] == twin.optimizer.param_groups[0]["lr"]
    torch.testing.assert_close(losses, loop(twin, images, labels, 8, order, rates), rtol=1e-5, atol=1e-5)


def test_a_scheduler_in_a_hook_is_not_undone() -> None:
    images, labels = data()
    step = a_step()

    def halve(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        optimizer.param_groups[0]["lr"] /= 2

    step.optimizer.register_step_post_hook(halve)
    step.epoch(images, labels, 8)
    assert step.optimizer.param_groups[0]["lr"] == 1e-2 / 8


def _add_group(step: fastnn.TrainStep) -> None:
    step.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 0.3})


def _load(step: fastnn.TrainStep) -> None:
    step.optimizer.load_state_dict(step.optimizer.state_dict())


@pytest.mark.parametrize(
    ("change", "rates"), [(_add_group, [1e-2, 0.3]), (_load, [0.1])], ids=["added", "loaded"]
)
def test_a_hook_that_changes_the_groups(
    change: Callable[[fastnn.TrainStep], None], rates: list[float]
) -> None:
    """Groups get back their original rate: a loaded one that of the step in which it was saved."""
    images, labels = data()
    step = a_step()
    first = step.optimizer.param_groups[0]
    handle = step.optimizer.register_step_post_hook(lambda *_: (handle.remove(), change(step))[0])
    step.epoch(images, labels, 8, lr=[0.1, 0.02, 0.3])
    assert first["lr"] == 1e-2
    assert [group["lr"] for group in step.optimizer.param_groups] == rates


def test_rates_are_given_back_after_an_error() -> None:
    images, labels = data()
    labels[20] = 9
    step = a_step()
    step.optimizer.register_step_post_hook(lambda *_: None)
    with pytest.raises(IndexError):
        step.epoch(images, labels, 8, torch.arange(23), lr=[0.1, 0.02, 0.3])
    assert step.optimizer.param_groups[0]["lr"] == 1e-2


@pytest.mark.parametrize(
    ("lr", "error", "words"),
    [
        ([10**400, 0.1, 0.1], TypeError, "lr must hold a number for each step"),
        (torch.ones(3, dtype=torch.complex64), TypeError, "lr must hold a number for each step"),
        ([0.1, 0.2], ValueError, r"lr has shape \(2,\), expected one entry for each of the 3 steps"),
        (0.1, ValueError, r"lr has shape \(\)"),
        ([0.1, -0.1, 0.1], ValueError, "lr must be at least 0, got -0.1"),
        ([0.1, float("nan"), 0.1], ValueError, "lr must be at least 0, got nan"),
        ("abc", TypeError, "lr must hold a number for each step, got str"),
        ([0.1, None, 0.1], TypeError, "lr must hold a number for each step, got list"),
    ],
)
def test_bad_rates_are_refused(lr: Any, error: type[Exception], words: str) -> None:
    step = a_step()
    twin = copy.deepcopy(step)
    with pytest.raises(error, match=words):
        step.epoch(*data(), 8, lr=lr)
    assert_same_state(step, twin)
