"""TensorBoard events of a finished run."""

from __future__ import annotations

from pathlib import Path

from fastnn.training.run import Run
from fastnn.training.schedule import lr_at


def write_events(directory: Path, run: Run) -> None:
    """Write loss and learning rate by step, and the test results, for ``tensorboard --logdir``.

    The events are written after the training, so that they take none of its time; events of an earlier run in
    `directory` are replaced.
    """
    from torch.utils.tensorboard import SummaryWriter

    for stale in directory.glob("events.out.tfevents.*"):
        stale.unlink()
    with SummaryWriter(str(directory)) as writer:
        for step, loss in enumerate(run.losses):
            rate = lr_at(run.config.schedule, step, run.steps, run.config.lr)
            writer.add_scalar("train/loss", loss, step + 1)
            writer.add_scalar("train/lr", rate, step + 1)
        for milestone in run.history:
            writer.add_scalar("test/loss", milestone.test_loss, milestone.step)
            writer.add_scalar("test/accuracy", milestone.test_accuracy, milestone.step)
