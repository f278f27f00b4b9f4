"""Steps of models that are not a chain: recorded by `fastnn.capture`, replayed as long as nothing changes."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastnn import _dispatch
from fastnn._dispatch import Unsupported, refuse
from fastnn._labels import labelled
from fastnn._torch_internals import MODULE_HOOKS, on_leaf
from fastnn.capture.captured import Captured
from fastnn.capture.known import Known
from fastnn.capture.program import Program
from fastnn.capture.signature import Signature, signature
from fastnn.capture.surroundings import Surroundings
from fastnn.capture.watch import present_obstacle
from fastnn.step.eager import EagerStep
from fastnn.step.parameters import clears_by_itself
from fastnn.step.refused import WarmUp
from fastnn.step.spec import StepSpec
from fastnn.step.watch import watch_step

_WARM_UP = WarmUp(
    "a step is recorded after a call with a batch of this kind, and compared with torch in the next"
)
_DTYPES = frozenset({torch.float32, torch.float64})  # of parameters
# After this many recordings in a row without a replay, the step stays eager for a while.
_MOST_IN_A_ROW = 8


# Time limit of a call of several steps, so that Ctrl-C takes effect.
_CALL_SECONDS = 0.05


class Taken(NamedTuple):
    """A step that was taken.

    Attributes:
        loss: its loss.
        reason: why it ran eagerly, None for a replay.
    """

    loss: Tensor
    reason: str | None


class RecordedStep:
    """The recordings of the step of a spec.

    They are used as long as nothing that model, loss and optimizer read has changed; a model that changes
    itself in each step, e.g. by a counter among its attributes, thus stays eager.
    """

    def __init__(self, spec: StepSpec, eager: EagerStep) -> None:
        self._spec = spec
        self._eager = eager
        self._update: _Update | None = None
        self._watch: Any = None
        self._in_a_row = 0
        self._at_once = 1  # steps of an epoch

    def find(self) -> _Update:
        """What takes the step; raises `Unsupported` if none can be recorded."""
        refuse(present_obstacle())
        if self._update is not None:
            if self._watch.unchanged():
                return self._update
            if self._update.replayed:
                self._in_a_row = 0
        if self._in_a_row == _MOST_IN_A_ROW:
            self._in_a_row = 0
            raise Unsupported(
                "the class or step of the optimizer, or parameters() or zero_grad() of a module, changes in "
                "each step"
            )
        self._update, spec = None, self._spec
        if clears_by_itself(spec.model):
            raise Unsupported("the model has its own zero_grad")
        for p in self._eager.parameters.now():
            if p.dtype not in _DTYPES or not p.is_cpu:  # torch would run all of it
                raise Unsupported(f"the parameters are {p.dtype} on {p.device}")
        watch = _dispatch.cpu.Watch()
        watch_step(watch, spec.model, spec.loss, spec.optimizer)
        self._watch, self._in_a_row = watch, self._in_a_row + 1
        self._update = _Update(self._eager, spec)
        return self._update

    def take_many(
        self, images: Tensor, labels: Tensor, rows: Tensor, steps: int, rates: Tensor | None
    ) -> Tensor:
        """The losses of steps taken in one call, none if the next must be taken by itself.

        Args:
            images: each step has its own rows of these, and of `labels`.
            labels: the targets.
            rows: those of each step in turn.
            steps: how many there are; fewer may be taken.
            rates: the learning rates; see `TrainStep.epoch`.

        Raises:
            Unsupported: no step can be taken this way.
        """
        signature((images, labels), {})  # raises unless they are plain tensors
        if not (images[0].is_contiguous() and labels[0].is_contiguous()):
            raise Unsupported("the rows of the images or of the labels are not contiguous")
        nothing = images.new_empty(0)
        if self._update is None or not self._watch.unchanged() or present_obstacle() is not None:
            return nothing
        groups = self._spec.optimizer.param_groups
        if type(groups) is not list:
            raise Unsupported("param_groups is not a list")
        self._eager.clear()
        size, steps = len(rows) // steps, min(steps, self._at_once)
        try:
            gathered = [(t.index_select(0, rows[:size]), t) for t in (images, labels)]
        except IndexError:
            return nothing
        before = [] if rates is None else [(group, group["lr"]) for group in groups]
        begin = time.perf_counter()
        try:
            taken = self._update.take_many(
                gathered, rows[: steps * size], steps, groups, None if rates is None else rates[:steps]
            )
        finally:
            for group, lr in before:
                group["lr"] = lr
        if len(taken) == steps:
            self._at_once = max(int(steps * _CALL_SECONDS / (time.perf_counter() - begin)), 1)
        return taken

    @property
    def programs(self) -> tuple[Any, ...]:
        """The recordings that are still valid."""
        return () if self._update is None else self._update.programs


class _Update(Captured):
    """The eager step, captured, which reports the outcome of a call.

    Attributes:
        replayed: whether a step was a replay.
    """

    _differs = "its recordings do not last, because of {}"

    def __init__(self, eager: EagerStep, spec: StepSpec) -> None:
        def run(inputs: tuple[Any, ...], target: Any) -> Tensor:
            self._ran = True
            return eager.take(inputs, target)

        super().__init__(run, native=False, check=True, keep_grad=spec.keep_grad)
        self.replayed = False
        self._eager = eager
        self._spec = spec
        self._ran = False
        self._loss: Tensor | None = None  # the last one
        self._reason: str | None = None  # why the last step was not recorded
        self._refuses = False  # some batches

    def check(self, inputs: tuple[Any, ...], target: Any) -> None:
        """Raise `Unsupported` if such a batch is known to be impossible to record."""
        for t in (*inputs, target):
            if isinstance(t, Tensor) and t.requires_grad and on_leaf(t):
                raise Unsupported("an input or the target has a hook")
        if self._refuses:
            known = self._known.get(signature((inputs, target), {}).key)
            if known is None or known.refused is None:
                return
            if self._spec.native or not known.is_outdated():
                raise Unsupported(known.refused)

    def _surroundings(
        self, called: Signature, around: list[Any], modules: list[nn.Module | Optimizer]
    ) -> Surroundings:
        return Surroundings(self._spec.loss, [self._spec.model], around, modules)

    def _looked_around(self, names: Surroundings | None, known: Known, new: list[Any]) -> list[str] | None:
        """As for any function, but with hooks, and with other effects than on tensors and modes, a step stays
        eager."""
        changed = super()._looked_around(names, known, new)
        modules = [m for root in known.called.values() if isinstance(root, nn.Module) for m in root.modules()]
        for module in modules:
            if any(module.__dict__.get(hooks) for hooks in MODULE_HOOKS):
                raise Unsupported(f"{type(module).__name__} has a hook")
        if any(map(on_leaf, known.leaves.values())):
            raise Unsupported("a parameter has a hook")
        if changed:
            known.left = known.pause
            raise Unsupported(f"it changes {', '.join(changed)} while it runs, which replays would not")
        return changed

    def take(self, inputs: tuple[Any, ...], target: Any) -> Taken:
        self._eager.clear()
        self._ran, self._reason = False, None
        loss = self._loss = self(inputs, target)
        if self._ran:
            return Taken(loss, self._reason or _WARM_UP)
        self.replayed = True
        return Taken(loss, None)

    def take_many(
        self,
        gathered: list[tuple[Tensor, Tensor]],
        rows: Tensor,
        steps: int,
        groups: list[dict[str, Any]],
        rates: Tensor | None,
    ) -> Tensor:
        (input, _), (target, _) = gathered
        for program in self.programs:
            if not isinstance(program, Program) or program.checked is None or self._loss is None:
                continue
            if program.modes:  # set after a step, they are not what the next one of several would find
                continue
            if program.islands:
                raise Unsupported(f"torch runs a part of the step: {program.islands[0][0]}")
            losses = self._loss.new_empty(steps)
            taken = labelled(program.native.run_batches, "program")(
                (((input,), target), {}), gathered, rows, losses, groups, rates
            )
            if taken:
                return losses[:taken]
        return input.new_empty(0)

    def _tell(self, reason: str) -> None:
        self._reason, self._refuses = reason, True
