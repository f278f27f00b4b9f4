"""Sees the steps of optimizers and schedulers in a recording."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from fastnn import _replaced
from fastnn._dispatch import Unsupported, refuse
from fastnn._replaced import HOMES
from fastnn.capture.options import Options
from fastnn.capture.recording import Recording
from fastnn.capture.schedules import SchedulerHook
from fastnn.capture.tape import Step, parameters_of, tensors_in


class Steps:
    """Each step becomes one entry of the tape, and what it does is not noted.

    Attributes:
        options: those of optimizers, which only their own steps may change.
        optimizers: those that took steps, by id.
        stepped: the ids of their parameters, including those of steps after a refusal.
    """

    def __init__(self, recording: Recording, optimizers: Iterable[Optimizer]) -> None:
        """`optimizers` are those that the function may use."""
        self.options = Options(optimizers)
        self.optimizers: dict[int, Optimizer] = {}
        self.stepped: set[int] = set()
        self._recording = recording

    def hooks(self) -> list[Any]:
        """Begin; to be removed at the end."""
        return [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
            SchedulerHook(self._scheduler_stepped),
        ]

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if threading.get_ident() != self._recording.thread:
            return
        self.stepped.update(map(id, parameters_of(optimizer)))
        if self._recording.refused is not None:
            return
        if self._recording.paused == 0:
            if args[1:] or kwargs:
                self._recording.refuse(f"{type(optimizer).__name__}.step is given a closure")
                return
            self.optimizers[id(optimizer)] = optimizer
            try:
                refuse(self.options.changed())
                self._note_step(optimizer)
            except Unsupported as reason:
                self._recording.refuse(str(reason))
                return
        elif isinstance(outer := self._recording.tape.entries[-1], Step) and outer.optimizer is not optimizer:
            # Such a wrapper keeps its state where a comparison would not restore it.
            names = (type(each).__name__ for each in (outer.optimizer, optimizer))
            self._recording.refuse("{}.step takes a step of another optimizer, {}".format(*names))
            return
        self._recording.paused += 1

    def _note_step(self, optimizer: Optimizer) -> None:
        step = optimizer.__dict__.get("step", type(optimizer).step)
        if not getattr(getattr(step, "__code__", None), "co_filename", "").startswith(HOMES):
            # It started before torch's hook ran: what it does is recorded, and a replay would repeat it.
            raise Unsupported(f"another function has been wrapped around {type(optimizer).__name__}.step")
        called = _replaced.Names(_replaced.parts_of_step(_replaced.torchs_class(type(optimizer))))
        refuse(called.first_replaced())
        gradients, parameters = [], []
        for group in optimizer.param_groups:
            for param in group["params"]:
                for t in tensors_in((param, param.grad)):
                    self._recording.check(t)
                self._recording.leaves[id(param)] = param
                if param.grad is not None:
                    gradients.append((param, self._recording.view(param.grad)))
                    parameters.append(self._recording.view(param))
        self._recording.tape.entries.append(Step(optimizer, gradients, parameters))

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if threading.get_ident() == self._recording.thread and self._recording.paused:
            self._recording.paused -= 1
            self.options.note(optimizer)

    def _scheduler_stepped(self, scheduler: LRScheduler) -> None:
        if self._recording.here():
            self._recording.refuse(f"it calls {type(scheduler).__name__}.step(), which a replay would not do")
        elif threading.get_ident() != self._recording.thread and hasattr(scheduler, "optimizer"):
            self.options.note(scheduler.optimizer)  # they were not changed by the function
