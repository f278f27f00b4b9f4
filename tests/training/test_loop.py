"""The loop: turns, checkpoints after epochs, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fastnn.training.checkpoint import Checkpoint
from fastnn.training.loop import deferred_interrupt, train
from fastnn.training.run import Milestone, Run


class Log:
    """An observer that records what it sees, and may react to it."""

    def __init__(self, act: Callable[[Run], None] = lambda run: None) -> None:
        self.turns: list[tuple[str, int]] = []
        self.tests: list[tuple[str, float]] = []
        self._act = act

    def stepped(self, run: Run, steps: int) -> None:
        self.turns.append((run.name, steps))
        self._act(run)

    def tested(self, run: Run, milestone: Milestone) -> None:
        self.tests.append((run.name, milestone.epoch))


def test_checkpoints_after_each_epoch(make_run, tmp_path: Path) -> None:
    path = tmp_path / "c"
    steps: list[int] = []
    log = Log(lambda run: steps.append(Checkpoint.load(path).step if path.exists() else 0))
    assert train([make_run()], [path], log)
    assert log.tests == [("fastnn", 1), ("fastnn", 2), ("fastnn", 3)]
    assert steps == [0, 11, 22]
    final = Checkpoint.load(path)
    assert final.step == 33
    assert len(final.history) == 3


def test_the_end_at_the_target_is_saved_within_an_epoch(make_run, tmp_path: Path) -> None:
    run, path = make_run(target=0.01), tmp_path / "c"
    log = Log()
    assert train([run], [path], log)
    assert log.tests == [("fastnn", 2 / 11)]
    assert Checkpoint.load(path).step == 2


def test_two_runs_alternate_and_neither_always_goes_first(make_run, tmp_path: Path) -> None:
    runs = [make_run(batch_size=1), make_run(batch_size=1, native=True)]
    log = Log()
    assert train(runs, [tmp_path / "a", tmp_path / "b"], log)
    assert len(log.turns) == 2 * 3 * 7
    pairs = [tuple(name for name, _ in log.turns[i : i + 2]) for i in range(0, len(log.turns), 2)]
    assert all(set(pair) == {"fastnn", "torch"} for pair in pairs)
    assert {pair[0] for pair in pairs[:7]} == {"fastnn", "torch"}
    assert {steps for _, steps in log.turns} == {50, 30}


def test_a_finished_run_is_left_alone(make_run, tmp_path: Path) -> None:
    run = make_run()
    train([run], [tmp_path / "c"], Log())
    log = Log()
    assert train([run], [tmp_path / "c"], log)
    assert log.turns == []


@pytest.mark.parametrize("stop", [5, 11, 15])
def test_an_interrupted_run_continues_bit_for_bit(make_run, tmp_path: Path, stop: int) -> None:
    whole, first, path = make_run(), make_run(), tmp_path / "c"
    train([whole], [tmp_path / "whole"], Log())
    with deferred_interrupt() as interrupted:

        def pressed() -> bool:
            time.sleep(0.02)  # after a slow step a run looks again after the next one
            if first.step == stop and not interrupted():
                signal.raise_signal(signal.SIGINT)
            return interrupted()

        assert not train([first], [path], Log(), pressed)
    saved = Checkpoint.load(path)
    assert saved.step == stop
    resumed = make_run(saved)
    assert train([resumed], [path], Log())
    for name, value in whole.parts.model.state_dict().items():
        assert torch.equal(value, resumed.parts.model.state_dict()[name])
    assert [epoch.test_loss for epoch in resumed.history] == [epoch.test_loss for epoch in whole.history]


def test_an_interrupt_before_the_first_step_saves_the_beginning(make_run, tmp_path: Path) -> None:
    assert not train([make_run()], [tmp_path / "c"], Log(), lambda: True)
    assert Checkpoint.load(tmp_path / "c").step == 0


def test_an_interrupt_saves_every_run(make_run, tmp_path: Path) -> None:
    runs = [make_run(), make_run(native=True)]
    paths = [tmp_path / "a", tmp_path / "b"]
    assert not train(runs, paths, Log(), lambda: runs[1].step > 0)
    assert [Checkpoint.load(path).step for path in paths] == [run.step for run in runs]


@pytest.fixture
def _interruptible() -> Iterator[None]:
    # A process that a shell started in the background inherits SIGINT as ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_the_second_interrupt_is_not_deferred() -> None:
    with deferred_interrupt() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_usual_handler_is_back_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupt():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_can_train(make_run, tmp_path: Path) -> None:
    results: list[bool] = []

    def work() -> None:
        with deferred_interrupt() as interrupted:
            results.append(train([make_run(epochs=1)], [tmp_path / "c"], Log(), interrupted))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [True]
