"""Sees every op of torch's that a function runs, backward included, and notes it with its memory."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from fastnn._dispatch import Unsupported
from fastnn._replaced import HOMES
from fastnn._torch_internals import (
    TorchDispatchMode,
    is_composite,
    within_backward,
)
from fastnn.capture.options import Options
from fastnn.capture.recording import Recording
from fastnn.capture.schedules import SchedulerHook
from fastnn.capture.tape import Op, Schema, Step, parameters_of, replace, schema_of, tensors_in
from fastnn.capture.unseen import Unseen

# These change a tensor's memory rather than its values.
_MOVES_MEMORY = {"resize_.default", "resize_as_.default", "set_.source_Tensor", "set_.source_Storage"}
# Of which only boolean indices depend on values.
_INDEXING = {"index.Tensor", "index_put.default", "index_put_.default", "_index_put_impl_.default"}


def _refuse_collective(schema: Schema) -> None:
    if schema.namespace.startswith(("c10d", "_c10d")):
        raise Unsupported(f"the collective {schema.name}")


@cache
def _is_composite(op: Any) -> bool:
    return is_composite(op)


class _Within:
    """The ops of an op, under the mode that it has come to."""

    def __init__(self, mode: TorchDispatchMode) -> None:
        self._mode = mode

    def __enter__(self) -> None:
        TorchDispatchMode.__enter__(self._mode)

    def __exit__(self, *error: object) -> None:
        TorchDispatchMode.__exit__(self._mode, *error)


class Steps:
    """Each step becomes one entry of the tape, and what it does is not noted.

    Attributes:
        options: of optimizers, which only a step of theirs may change.
        optimizers: that took steps, by id.
        stepped: the ids of their parameters, and of steps after a refusal.
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
                if (reason := self.options.changed()) is not None:
                    raise Unsupported(reason)
                self._note_step(optimizer)
            except Unsupported as reason:
                self._recording.refuse(str(reason))
                return
        elif isinstance(outer := self._recording.tape.entries[-1], Step) and outer.optimizer is not optimizer:
            # Which keeps its state where a comparison would not put it back.
            names = (type(each).__name__ for each in (outer.optimizer, optimizer))
            self._recording.refuse("{}.step takes a step of another optimizer, {}".format(*names))
            return
        self._recording.paused += 1

    def _note_step(self, optimizer: Optimizer) -> None:
        step = optimizer.__dict__.get("step", type(optimizer).step)
        if not getattr(getattr(step, "__code__", None), "co_filename", "").startswith(HOMES):
            # It began before torch told of the step: what it does is recorded, and a replay would repeat it.
            raise Unsupported(f"somebody has put a function around {type(optimizer).__name__}.step")
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
            self.options.note(scheduler.optimizer)  # it is not the function that has changed them


class Recorder(TorchDispatchMode):
    """While it is entered, ops of the calling thread run as ever and are noted, until what a recording cannot
    hold ends it.

    Attributes:
        recording: what has been noted.
        steps: those of optimizers.
    """

    def __init__(self, inputs: list[Tensor], optimizers: Iterable[Optimizer] = ()) -> None:
        """`inputs` are the tensors among the arguments; `optimizers` those that the function may use."""
        super().__init__()
        self.recording = Recording(inputs)
        self.steps = Steps(self.recording, optimizers)
        self._hooks: list[Any] = []
        self._unseen = Unseen(self.recording)

    def __enter__(self) -> Any:
        """Begin."""
        self._hooks = [
            *self.steps.hooks(),
            torch.nn.modules.module.register_module_forward_pre_hook(self._module_called),
        ]
        self._unseen.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """End."""
        super().__exit__(*error)
        self._unseen.__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an op and note it."""
        noted, kwargs = self.recording, kwargs or {}
        if noted.refused is not None:
            return func(*args, **kwargs)
        noted.ran_backward = noted.ran_backward or within_backward()
        try:
            schema = schema_of(func)
            if noted.paused:
                _refuse_collective(schema)  # what else an optimizer's step does, a replay does too
                return func(*args, **kwargs)
            if schema.namespace == "profiler":
                return func(*args, **kwargs)
            if torch.is_inference_mode_enabled() and _is_composite(func):  # elsewhere autograd decomposes it
                with _Within(self):
                    return func.decompose(*args, **kwargs)
            self._check(schema, args, kwargs)
            if schema.name == "lift_fresh.default":
                return self._constant(func(*args))
            noted_args = tuple(replace(a, Tensor, noted.view) for a in args)
            noted_kwargs = {key: replace(a, Tensor, noted.view) for key, a in kwargs.items()}
        except Unsupported as reason:
            noted.refuse(str(reason))
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        try:
            for t in tensors_in(result):
                noted.check(t)
            before = len(noted.tape.fresh)
            results = replace(result, Tensor, noted.result)
            fresh = tuple(noted.tape.fresh[before:])
            if fresh or schema.writes or schema.random:  # else the results are views: no work
                noted.tape.entries.append(Op(func, schema, noted_args, noted_kwargs, results, fresh))
        except Unsupported as reason:
            noted.refuse(str(reason))
        return result

    def _constant(self, tensor: Tensor) -> Tensor:
        """A tensor of Python's numbers is made anew in each call, from a copy that stays."""
        if self.recording.storage_of(tensor) is None:
            made, copy_ = self.recording.result(tensor), torch.ops.aten.copy_.default
            source = self.recording.first_view(kept := tensor.clone(), kept)
            self.recording.tape.entries.append(Op(copy_, schema_of(copy_), (made, source), {}, made, ()))
        return tensor

    def _check(self, schema: Schema, args: Any, kwargs: Any) -> None:
        _refuse_collective(schema)
        if schema.name in _MOVES_MEMORY:
            raise Unsupported(f"{schema.name} changes the memory of a tensor")
        if schema.depends_on_values and schema.name not in _INDEXING:
            if schema.name == "_local_scalar_dense.default":
                raise Unsupported(
                    "a value is read, by .item() or by Python's control flow on a tensor: return the tensor "
                    "and read it outside, or choose by torch.where"
                )
            raise Unsupported(f"the result of {schema.name} depends on values")
        if schema.name in _INDEXING:
            for t in tensors_in(args[1]):
                if t.dtype in (torch.bool, torch.uint8):
                    raise Unsupported(
                        "an index with a mask, whose result depends on values: choose by torch.where"
                    )
        for t in tensors_in((args, kwargs)):
            self.recording.check(t)

    def _module_called(self, module: torch.nn.Module, args: Any) -> None:
        if not self.recording.here():
            return
        if isinstance(module, (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)):
            self.recording.refuse(f"{type(module).__name__} works on other devices or in other processes")
        self.recording.tape.modules.append(module)
