"""One run: a model on its way from the first step to the last."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from fastnn.data import Batches, Dataset
from fastnn.training.checkpoint import Checkpoint, CheckpointError
from fastnn.training.config import TrainConfig
from fastnn.training.evaluate import Evaluation, evaluate
from fastnn.training.model import build, rehearse, step
from fastnn.training.schedule import lr_at


@dataclass(frozen=True)
class Epoch:
    """What came of one epoch: mean training loss, test loss and accuracy, and the seconds of training."""

    epoch: int
    train_loss: float
    test_loss: float
    test_accuracy: float
    train_seconds: float


class Run:
    """The state of a run and how it advances; it prints nothing and writes nothing.

    Args:
        config: the settings.
        data: the data set; `config.train_samples` is applied to it here.
        device: where to train.
        resume: a checkpoint of a run with the same settings, to continue bit by bit as if never interrupted.

    Raises:
        CheckpointError: `resume` is not a checkpoint of such a run.

    Attributes:
        backend: what the steps run on, in words, as observed on two steps of a copy.
        step: steps taken so far, of `steps`.
        losses: the training loss of each step.
        history: the evaluated epochs.
        train_seconds: time inside the steps, batches included; set-up, evaluation and display are not.
    """

    def __init__(
        self, config: TrainConfig, data: Dataset, device: torch.device, resume: Checkpoint | None = None
    ) -> None:
        data = data.first(config.train_samples)
        self.config = config
        self.data = data
        self.device = device
        self.parts = build(config, data.inputs, data.classes, device)
        self.batches = Batches(
            torch.from_numpy(data.train_images).to(device),
            torch.from_numpy(data.train_labels).to(device),
            batch_size=config.batch_size,
            mean=data.mean,
            std=data.std,
            dtype=getattr(torch, config.dtype),
            seed=config.seed,
        )
        self._test_images = torch.from_numpy(data.test_images).to(device)
        self._test_labels = torch.from_numpy(data.test_labels).to(device)
        self.steps_per_epoch = len(self.batches)
        self.steps = config.epochs * self.steps_per_epoch
        self.step = 0
        self.losses: list[float] = []
        self.history: list[Epoch] = []
        self.train_seconds = 0.0
        if resume is not None:
            self._restore(resume)
        self.backend = rehearse(self.parts, *self.batches.get(0))

    @property
    def name(self) -> str:
        """Whose ops are asked for: ``fastnn`` or ``torch``."""
        return "torch" if self.config.native else "fastnn"

    @property
    def layers(self) -> list[int]:
        """Widths of all layers, from the pixels to the classes."""
        return [self.data.inputs, *self.config.hidden, self.data.classes]

    @property
    def finished(self) -> bool:
        """Whether every step is taken and every epoch evaluated."""
        return self.step == self.steps and not self.epoch_ended

    @property
    def epoch_ended(self) -> bool:
        """Whether the epoch that just ended waits for `end_epoch`."""
        return self.step == (len(self.history) + 1) * self.steps_per_epoch

    def advance(self, steps: int, interrupted: Callable[[], bool] = lambda: False) -> int:
        """Take at most `steps` steps, no further than the end of the epoch; returns how many.

        `interrupted` is asked after each step; a step that was begun is always finished.
        """
        if self.step == self.steps:
            return 0
        begin, offset = self.step, self.step % self.steps_per_epoch
        end = min(begin + steps, begin - offset + self.steps_per_epoch, self.steps)
        pending: list[Tensor] = []
        started = time.perf_counter()
        if offset == 0 and begin > 0:
            self.batches.start_epoch()
        while self.step < end:
            rate = lr_at(self.config.schedule, self.step, self.steps, self.config.lr)
            for group in self.parts.optimizer.param_groups:
                group["lr"] = rate
            images, labels = self.batches.get(self.step % self.steps_per_epoch)
            pending.append(step(self.parts, images, labels))
            self.step += 1
            if interrupted():
                break
        # One transfer for all steps; on a GPU it also waits for them, so it belongs to the time.
        self.losses += torch.stack(pending).double().tolist()
        self.train_seconds += time.perf_counter() - started
        return self.step - begin

    def evaluate(self) -> Evaluation:
        """Test the model as it is now."""
        return evaluate(self.parts.model, self.batches, self._test_images, self._test_labels)

    def end_epoch(self) -> Epoch:
        """Evaluate the epoch that ended and add it to the history."""
        evaluation = self.evaluate()
        losses = self.losses[len(self.history) * self.steps_per_epoch :]
        epoch = Epoch(
            epoch=len(self.history) + 1,
            train_loss=sum(losses) / len(losses),
            test_loss=evaluation.loss,
            test_accuracy=evaluation.accuracy,
            train_seconds=self.train_seconds - sum(past.train_seconds for past in self.history),
        )
        self.history.append(epoch)
        return epoch

    def checkpoint(self) -> Checkpoint:
        """The present state."""
        return Checkpoint(
            config=self.config,
            dataset=self.data.name,
            step=self.step,
            train_seconds=self.train_seconds,
            history=[asdict(epoch) for epoch in self.history],
            model=self.parts.model.state_dict(),
            optimizer=self.parts.optimizer.state_dict(),
            order=self.batches.state(),
            losses=torch.tensor(self.losses, dtype=torch.float64),
        )

    def _restore(self, saved: Checkpoint) -> None:
        saved.check_against(self.config, self.data.name)
        if not 0 <= saved.step <= self.steps:
            raise CheckpointError(f"step: expected at most {self.steps}; came {saved.step}")
        saved.restore(self.parts.model, self.parts.optimizer)
        try:
            self.batches.restore(saved.order)
            self.history = [Epoch(**epoch) for epoch in saved.history]
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(f"the checkpoint is damaged: {error}") from None
        self.step = saved.step
        self.losses = saved.losses.tolist()
        self.train_seconds = saved.train_seconds
