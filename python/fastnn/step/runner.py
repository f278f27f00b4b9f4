"""How a step is taken: by its plan, by a recording, or eagerly, then with a warning."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from fastnn import _dispatch
from fastnn._diagnostics import EagerStepWarning, levels_out
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
            loss = self.planned.replay(inputs, target)
            return (None, loss) if isinstance(loss, str) else (loss, None)
        loss = self.planned.take(inputs, target)
        if not isinstance(loss, str):
            self._refused = None
            return loss, None
        why: str | None = loss
        try:
            taken = self.recorded.take(inputs, target)
            why = taken if isinstance(taken, str) else taken.reason
            if isinstance(taken, str):
                self._refused = Refused(taken, self._refused)
            elif why is None:
                self._refused = None
        finally:
            if why is not None:
                _dispatch.decide("chain_step", loss)
        if why is not None and not isinstance(why, WarmUp) and why != loss:
            why = f"{loss}; and it cannot be recorded: {why}"
        return None if isinstance(taken, str) else taken.loss, why

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
