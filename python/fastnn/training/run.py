"""One run: a model on its way from the first step to the last."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fastnn.data import Batches, Dataset, normalise
from fastnn.training.checkpoint import Checkpoint, CheckpointError
from fastnn.training.config import TrainConfig
from fastnn.training.distributed import Ranks, shared_steps
from fastnn.training.evaluate import Evaluation, evaluate
from fastnn.training.model import Parts, Steps, build, fastnn_steps, rehearse, torch_steps
from fastnn.training.schedule import lr_at

_TESTS = 8
"""Tests in an epoch of a run to a target accuracy: the time to it is known to an eighth of an epoch."""

# Seconds between two checks whether to stop, and the most steps, since a device may lag by many.
_LOOK_SECONDS, _MOST_STRIDE = 0.01, 64


_ALONE = Ranks()


@dataclass(frozen=True)
class Milestone:
    """What a test found.

    Attributes:
        step: steps taken by then.
        epoch: epochs done by then, and parts of one.
        train_loss: mean over the steps since the test before.
        test_loss: mean over the test images.
        test_accuracy: from 0 to 1.
        train_seconds: spent in the steps since the test before.
    """

    step: int
    epoch: float
    train_loss: float
    test_loss: float
    test_accuracy: float
    train_seconds: float


class Run:
    """The state of a run and how it advances; it prints nothing and writes nothing.

    The model is tested at each epoch's end or, where `config.target` is set, eight times an epoch, after
    equal numbers of steps (rounded up), until the target or the last step is reached.

    fastnn trains on the images as bytes. Plain torch trains on images normalised once and for all in memory:
    that is faster there than to convert each batch.

    Args:
        config: the settings.
        data: the data set; `config.train_samples` is applied to it here.
        device: where to train.
        resume: a checkpoint of a run with the same settings, to continue bit for bit as if never interrupted.
        ranks: the processes that share the run; all make it, and call its methods, alike.

    Raises:
        CheckpointError: `resume` is not a checkpoint of such a run.

    Attributes:
        backend: what the steps run on, in words, as observed on two steps of a copy.
        step: steps taken so far, of `steps`.
        losses: the training loss of each step.
        history: the tests.
        train_seconds: time inside the steps, batches included; set-up, tests and display are not.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Dataset,
        device: torch.device,
        resume: Checkpoint | None = None,
        ranks: Ranks = _ALONE,
    ) -> None:
        data = data.first(config.train_samples)
        self.config = config
        self.data = data
        self.device = device
        self.ranks = ranks
        self.parts = build(config, data.inputs, data.classes, device)
        images = torch.from_numpy(data.train_images).to(device)
        ready = partial(normalise, mean=data.mean, std=data.std, dtype=getattr(torch, config.dtype))
        self.batches = Batches(
            ready(images) if config.native else images,
            torch.from_numpy(data.train_labels).to(device),
            batch_size=config.batch_size,
            seed=config.seed,
        )
        self._test_images = ready(torch.from_numpy(data.test_images).to(device))
        self._test_labels = torch.from_numpy(data.test_labels).to(device)
        self.steps_per_epoch = len(self.batches)
        self.steps = config.epochs * self.steps_per_epoch
        self.step = 0
        self.losses: list[float] = []
        self.history: list[Milestone] = []
        self.train_seconds = 0.0
        if resume is not None:
            self._restore(resume)
        stepping: Callable[[Parts], Steps]
        if ranks.size > 1:
            stepping = partial(shared_steps, ready=_as_it_is if config.native else ready, ranks=ranks)
        elif config.native:
            stepping = torch_steps
        else:
            stepping = partial(fastnn_steps, mean=data.mean, std=data.std)
        self.backend = rehearse(self.parts, stepping, self.batches)
        self._take = stepping(self.parts)
        self._stride = 1  # steps between two checks whether to stop

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
        """Whether the last step is taken and tested, or the target reached."""
        return (self.step == self.steps or self.seconds_to_target is not None) and not self.test_due

    @property
    def test_due(self) -> bool:
        """Whether the present model has yet to be tested."""
        tested = self.history[-1].step if self.history else 0
        return tested < self.step == self._next_test(self.step - 1)

    @property
    def seconds_to_target(self) -> float | None:
        """Seconds of training up to the first test that met `config.target`; None if none did."""
        if self.config.target is not None:
            seconds = 0.0
            for milestone in self.history:
                seconds += milestone.train_seconds
                if milestone.test_accuracy >= self.config.target:
                    return seconds
        return None

    def images_seen(self, step: int) -> int:
        """Training images in the first `step` steps."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        return epochs * len(self.batches.images) + rest * self.config.batch_size

    def advance(self, steps: int, interrupted: Callable[[], bool] = lambda: False) -> int:
        """Take at most `steps` steps, no further than to the next test; returns how many.

        `interrupted` is called every few steps, some 10 ms apart; a step that was begun is always finished.
        """
        if self.step == self.steps:
            return 0
        begin = self.step
        end = min(begin + steps, self._next_test(begin))
        pending: list[Tensor] = []
        started = time.perf_counter()
        if begin > 0 and begin % self.steps_per_epoch == 0:
            self.batches.start_epoch()
        while self.step < end:
            began = time.perf_counter()
            numbers = range(self.step, min(self.step + self._stride, end))
            rates = [lr_at(self.config.schedule, n, self.steps, self.config.lr) for n in numbers]
            pending.append(self._take(self.batches, self.step % self.steps_per_epoch, rates))
            self.step += len(rates)
            if interrupted():
                break
            slow = self.ranks.any(time.perf_counter() - began > _LOOK_SECONDS)
            self._stride = max(self._stride // 2, 1) if slow else min(self._stride * 2, _MOST_STRIDE)
        # One transfer for all steps; on a GPU it also waits for them, so it is part of the time.
        self.losses += torch.cat(pending).double().tolist()
        self.train_seconds += time.perf_counter() - started
        return self.step - begin

    def _next_test(self, step: int) -> int:
        """The first step after `step` that a test follows."""
        tests = _TESTS if self.config.target is not None else 1
        number = step * tests // self.steps_per_epoch + 1
        return -(-number * self.steps_per_epoch // tests)

    def evaluate(self) -> Evaluation:
        """Test the present model."""
        return evaluate(self.parts.model, self._test_images, self._test_labels)

    def test(self) -> Milestone:
        """Test the model and add the result to the history."""
        milestone = self.ranks.from_first(self._tested)
        self.history.append(milestone)
        return milestone

    def _tested(self) -> Milestone:
        evaluation = self.evaluate()
        losses = self.losses[self.history[-1].step if self.history else 0 :]
        return Milestone(
            step=self.step,
            epoch=self.step / self.steps_per_epoch,
            train_loss=sum(losses) / len(losses),
            test_loss=evaluation.loss,
            test_accuracy=evaluation.accuracy,
            train_seconds=self.train_seconds - sum(past.train_seconds for past in self.history),
        )

    def save(self, path: Path) -> None:
        """Write the present state, in the one process that writes."""
        if self.ranks.leads:
            self.checkpoint().save(path)

    def checkpoint(self) -> Checkpoint:
        """The present state."""
        return Checkpoint(
            config=self.config,
            dataset=self.data.name,
            step=self.step,
            train_seconds=self.train_seconds,
            history=[asdict(milestone) for milestone in self.history],
            model=self.parts.model.state_dict(),
            optimizer=self.parts.optimizer.state_dict(),
            order=self.batches.state(),
            losses=torch.tensor(self.losses, dtype=torch.float64, device="cpu"),
        )

    def _restore(self, saved: Checkpoint) -> None:
        saved.check_against(self.config, self.data.name)
        if not 0 <= saved.step <= self.steps:
            raise CheckpointError(f"step: expected at most {self.steps}, got {saved.step}")
        saved.restore(self.parts.model, self.parts.optimizer)
        try:
            self.batches.restore(saved.order)
            self.history = [Milestone(**test) for test in saved.history]
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(f"the checkpoint is damaged: {error}") from None
        self.step = saved.step
        self.losses = saved.losses.tolist()
        self.train_seconds = saved.train_seconds


def _as_it_is(images: Tensor) -> Tensor:
    return images
