"""How a step is taken: by its plan, by a recording, or eagerly, then with a warning."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from fastnn import _dispatch
from fastnn._diagnostics import EagerStepWarning, levels_out
from fastnn._dispatch import Unsupported
from fastnn.capture import cuda_graph
from fastnn.step.eager import EagerStep
from fastnn.step.planned import PlannedStep
from fastnn.step.recorded import RecordedStep
from fastnn.step.refused import Refused, WarmUp
from fastnn.step.spec import StepSpec


class Runner:
    """Takes the steps of a spec.

    Attributes:
        spec: the arguments of the step.
        eager: takes them as written.
        planned: takes those of a chain.
        recorded: takes those of anything else.
    """

    def __init__(self, spec: StepSpec, told: set[str]) -> None:
        """`told` are reasons for eager steps already warned about; new ones are added."""
        self.spec = spec
        self.eager = EagerStep(spec)
        self.planned = PlannedStep(spec)
        self.recorded = RecordedStep(spec, self.eager)
        self._told = told
        self._refused: Refused | None = None  # why steps are eager

    def take(self, inputs: tuple[Any, ...], target: Any) -> Tensor:
        """Take a step; returns its loss."""
        # Before anything else: the checks below take 2 us on their own, and 13 between steps, which evict
        # them from the caches.
        refused = None if self.spec.native or _dispatch.is_recording() else self._refused
        if refused is not None and refused.is_believed():
            return self.eager.take(inputs, target)
        loss, reason = self._natively(inputs, target)
        _dispatch.decide("train_step", reason)
        if reason is not None:
            self._tell(reason)
        return self.eager.take(inputs, target) if loss is None else loss

    def look_again(self) -> None:
        """Forget what prevented a native step the last time."""
        self.planned.look_again()
        if self._refused is not None:
            self._refused.left = 0

    def _natively(self, inputs: tuple[Any, ...], target: Any) -> tuple[Tensor | None, str | None]:
        """The loss of the step, None if it has yet to be taken eagerly; and why it is eager, None if it is
        not."""
        reason = _dispatch.torch_reason()
        if reason is not None:
            return None, reason
        if inputs and isinstance(inputs[0], Tensor) and cuda_graph.is_there(inputs[0].device):
            try:
                return self.planned.replay(inputs, target), None
            except Unsupported as refusal:
                return None, refusal.args[0]  # str() would make a `WarmUp` a plain text
        reason = self.planned.known_refusal()
        if reason is None:
            try:
                taken = self.planned.take(inputs, target)
            except Unsupported as refusal:
                reason = str(refusal)
            else:
                self._refused = None
                return taken, None
        why: str | None = reason
        try:
            loss, why = self._by_recording(inputs, target)
        finally:
            if why is not None:
                _dispatch.decide("chain_step", reason)
        if why is not None and not isinstance(why, WarmUp) and why != reason:
            why = f"{reason}; and it cannot be recorded: {why}"
        return loss, why

    def _by_recording(self, inputs: tuple[Any, ...], target: Any) -> tuple[Tensor | None, str | None]:
        try:
            update = self.recorded.find()
            update.check(inputs, target)
        except Unsupported as refusal:
            self._refused = Refused(str(refusal), self._refused)
            return None, str(refusal)
        taken = update.take(inputs, target)
        if taken.reason is None:
            self._refused = None
        return taken

    def _tell(self, reason: str) -> None:
        """Warn about the coming eager step, or refuse it, unless it is expected."""
        if isinstance(reason, WarmUp) or _dispatch.is_disabled():
            return
        if self.spec.native:
            raise RuntimeError(f"TrainStep: native=True, but the step cannot run natively: {reason}")
        if reason in self._told:
            return
        warnings.warn(
            f"TrainStep runs eagerly: {reason}. Only ops of fastnn's modules and optimizers are native then, "
            "see fastnn.convert. This warning comes once for each reason; to silence it: "
            'warnings.filterwarnings("ignore", category=fastnn.EagerStepWarning)',
            EagerStepWarning,
            stacklevel=levels_out(),
        )
        self._told.add(reason)
