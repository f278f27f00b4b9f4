"""Runs from start to end, with their tests, checkpoints, and a clean stop on Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fastnn.training.run import Milestone, Run

# Steps between two checks of the losses and the clock: some 10 ms of work, far more than a check costs, and
# far less than the time in which the machine's speed drifts, so that two alternating runs meet the same
# conditions.
_TURN = 50


class Observer:
    """What watches a training; this one says nothing."""

    def stepped(self, run: Run, steps: int) -> None:
        """`steps` more steps are taken."""

    def tested(self, run: Run, milestone: Milestone) -> None:
        """The model was tested."""


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Inside the block, SIGINT is only noted: what is yielded tells whether; a second SIGINT acts as usual.

    Outside the main thread, where Python delivers no signals, there is none to note.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    usual = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, usual)
        asked.set()

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, usual)


def train(
    runs: Sequence[Run],
    checkpoints: Sequence[Path],
    observer: Observer,
    interrupted: Callable[[], bool] = lambda: False,
) -> bool:
    """Bring `runs` to their end, in turns of a few steps, the order reversed each time, so that none is
    favoured.

    The state of run i is saved to ``checkpoints[i]`` after each of its epochs, at its end and at an
    interruption.

    Returns:
        Whether all runs are finished; False after an interruption.
    """
    order = list(zip(runs, checkpoints, strict=True))
    while not all(run.finished for run in runs):
        for run, path in order:
            if run.test_due:
                milestone = run.test()
                if run.finished or run.step % run.steps_per_epoch == 0:
                    run.save(path)
                observer.tested(run, milestone)
            elif not run.finished and not interrupted():
                observer.stepped(run, run.advance(_TURN, interrupted))
        if interrupted():
            for run, path in order:
                run.save(path)
            return all(run.finished for run in runs)
        order.reverse()
    return True
