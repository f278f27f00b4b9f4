"""The terminal's view of a run: a progress bar, and a line for each test."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType

from fastnn.training.loop import Observer
from fastnn.training.report import images_per_second
from fastnn.training.run import Milestone, Run


class Console(Observer):
    """An observer that shows loss and images/s during the runs.

    The bar goes to stderr and is left out where stderr is no terminal; the lines go to stdout.
    """

    def __init__(self, runs: Sequence[Run], *, progress: bool) -> None:
        from tqdm import tqdm

        self._runs = runs
        self._bar = tqdm(
            total=sum(run.steps for run in runs),
            initial=sum(run.step for run in runs),
            disable=None if progress else True,
            unit="step",
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        )

    def __enter__(self) -> Console:
        if any(run.step < run.steps for run in self._runs):
            self._line("   epoch  train loss  test loss  test accuracy  seconds   images/s")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def stepped(self, run: Run, steps: int) -> None:
        """Move the bar on."""
        if self._bar.disable:
            return
        self._bar.set_description_str(
            f"epoch {min(run.step // run.steps_per_epoch + 1, run.config.epochs)}/{run.config.epochs}",
            refresh=False,
        )
        recent = run.losses[-steps:]
        postfix = f"loss {sum(recent) / len(recent):.4f}"
        for each in self._runs:
            if each.step:
                name = f"{each.name} " if len(self._runs) > 1 else ""
                postfix += f", {name}{images_per_second(each):,.0f} images/s"
        self._bar.set_postfix_str(postfix, refresh=False)
        self._bar.update(steps)

    def tested(self, run: Run, milestone: Milestone) -> None:
        """Report the progress since the previous test."""
        count = f"{round(milestone.epoch, 2):.10g}/{run.config.epochs}"
        before = run.history[-2].step if len(run.history) > 1 else 0
        images = run.images_seen(milestone.step) - run.images_seen(before)
        name = f"  {run.name}" if len(self._runs) > 1 else ""
        self._line(
            f"{count:>8}{milestone.train_loss:>12.4f}{milestone.test_loss:>11.4f}{milestone.test_accuracy:>15.2%}"
            f"{milestone.train_seconds:>9.3f}{images / milestone.train_seconds:>11,.0f}{name}"
        )

    def _line(self, text: str) -> None:
        self._bar.write(text, file=sys.stdout)
