"""If threads wait for each other in vain, short work is done by one of them alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import fastnn
from fastnn import _dispatch
from fastnn.step import epoch
from fastnn.step.planned import PlannedStep

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

SHORT, LONG = 1, 1 << 24  # operations
MS = 1_000_000  # ns


@pytest.fixture
def aside() -> Iterator[Callable[[Callable[[], object]], object]]:
    """Runs a function in a thread of its own, to which working alone is confined; with two threads."""
    threads = torch.get_num_threads()
    _dispatch.cpu.testing.notice_oversubscription(True)

    def run(function: Callable[[], object]) -> object:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(2,)) as pool:
            return pool.submit(function).result()

    try:
        yield run
    finally:
        _dispatch.cpu.testing.notice_oversubscription(False)
        torch.set_num_threads(threads)


def threads_of(operations: int, *, late: int = 0, team: bool = False) -> int:
    """How many threads do work of that size, if the last one arrives late."""
    return _dispatch.cpu.testing.probe_late(operations, team, 1, late)[0]


def pieces_of(operations: int, *, late: int) -> int:
    """How many of 20 pieces of work a team of two threads does, if the last thread arrives late each time."""
    threads, pieces = _dispatch.cpu.testing.probe_late(operations, True, 20, late)
    assert threads == 2
    return pieces


@pytest.mark.parametrize("team", [False, True])
def test_short_work_is_done_alone_after_a_wait_without_result(aside: Callable, team: bool) -> None:
    def run() -> list[int]:
        first = threads_of(SHORT, late=200 * MS, team=team)
        return [first, *(threads_of(work, team=team) for work in (SHORT, LONG, SHORT))]

    assert aside(run) == [2, 1, 2, 1]


@pytest.mark.parametrize("team", [False, True])
def test_threads_come_together_again(aside: Callable, team: bool) -> None:
    def run() -> int:
        threads_of(SHORT, late=5 * MS, team=team)
        deadline = time.monotonic() + 2
        while threads_of(SHORT, team=team) == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        return threads_of(SHORT, team=team)

    # If this machine is oversubscribed now, another wait makes it one thread again: some try is undisturbed.
    assert any(aside(run) == 2 for _ in range(500))


@pytest.mark.parametrize("team", [False, True])
def test_a_wait_within_what_the_work_takes_is_none(aside: Callable, team: bool) -> None:
    operations = 1 << 21  # allows 1 + 1 ms; this machine may make it longer, but not every time

    def run() -> bool:
        threads_of(operations, late=MS, team=team)
        return threads_of(operations, team=team) == 2

    assert any(aside(run) for _ in range(500))


def test_work_of_many_pieces_ends_at_the_first_wait_without_result(aside: Callable) -> None:
    assert aside(lambda: (pieces_of(SHORT, late=20 * MS), threads_of(SHORT))) == (1, 1)


def test_waits_too_short_to_tell_anything_add_up_over_short_pieces(aside: Callable) -> None:
    operations = 1 << 18  # 1.13 ms are allowed in one piece, 1.39 ms in three

    def run() -> tuple[int, int]:
        return pieces_of(operations, late=MS // 2), threads_of(SHORT)

    pieces, threads = aside(run)
    assert pieces <= 3
    assert threads == 1


def test_long_pieces_are_done_to_the_end(aside: Callable) -> None:
    assert aside(lambda: (pieces_of(LONG, late=MS // 100), threads_of(SHORT))) == (20, 2)


def test_an_epoch_continues_with_another_number_of_threads(
    aside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch, "_CALL_WORK", 2**40)  # one native call, unless something ends it
    images, labels = torch.randn(64 * 2000, 64), torch.randint(9, (64 * 2000,))
    calls: list[int] = []
    take_many = PlannedStep.take_many

    def counted(self: PlannedStep, *args: Any) -> torch.Tensor:
        losses = take_many(self, *args)
        calls.append(len(losses))
        return losses

    monkeypatch.setattr(PlannedStep, "take_many", counted)

    def train(late: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 400), torch.nn.ReLU(), torch.nn.Linear(400, 9))
        step = fastnn.TrainStep(model, torch.nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters()))
        threads_of(SHORT, late=late)
        return [step.epoch(images, labels, batch_size=64), *model.parameters()]

    alone = aside(lambda: train(2 * MS))  # for 32 ms, of hundreds
    assert len(calls) > 1
    assert sum(calls) == 2000
    for a, b in zip(alone, aside(lambda: train(0)), strict=True):
        assert torch.equal(a, b)


def test_long_work_says_nothing_about_oversubscription(aside: Callable) -> None:
    assert aside(lambda: (threads_of(LONG, late=200 * MS), threads_of(SHORT))) == (2, 2)


def test_other_threads_continue(aside: Callable) -> None:
    assert aside(lambda: (threads_of(SHORT, late=200 * MS), threads_of(SHORT))) == (2, 1)
    assert aside(lambda: threads_of(SHORT)) == 2


def test_results_stay_the_same(aside: Callable) -> None:
    x, y = torch.randn(256, 300), torch.randint(9, (256,))

    def train() -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = fastnn.nn.MLP([300, 200, 9])
        optimizer = fastnn.optim.Adam(model.parameters())
        step = fastnn.TrainStep(model, fastnn.nn.CrossEntropyLoss(), optimizer)
        losses = [step(x, y) for _ in range(3)]
        for _ in range(3):
            optimizer.zero_grad()
            losses.append(fastnn.nn.CrossEntropyLoss()(model(x), y))
            losses[-1].backward()
            optimizer.step()
        return [*losses, *model.parameters()]

    def oversubscribed() -> list[torch.Tensor]:
        threads_of(SHORT, late=500 * MS)
        assert threads_of(SHORT) == 1
        return train()

    for alone, together in zip(aside(oversubscribed), train(), strict=True):
        assert torch.equal(alone, together)
