"""Steps of chains of linear layers, by `plan.py`: in a native call, or by a replay of a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnn._dispatch import Unsupported, refuse
from fastnn._labels import labelled
from fastnn._torch_internals import note_step
from fastnn.capture.watch import present_obstacle
from fastnn.optim.native import make_state
from fastnn.step.parameters import drop_gradients
from fastnn.step.plan import LossOptions, StepPlan, make_plan
from fastnn.step.refused import Refused
from fastnn.step.spec import StepSpec

_DTYPES = frozenset({torch.float32, torch.float64})  # of a native step's parameters


class PlannedStep:
    """Takes the steps of a spec by its plan; where that is impossible, raises `Unsupported` with nothing
    changed."""

    def __init__(self, spec: StepSpec) -> None:
        self._spec = spec
        self._plan: StepPlan | None = None
        self._refused: Refused | None = None  # why there is no plan

    def find(self) -> StepPlan:
        """The current plan if it still holds, else a new one."""
        if self._plan is not None:
            if self._plan.holds():
                return self._plan
            self._plan = None
        elif self._refused is not None and self._refused.is_believed():
            raise Unsupported(self._refused.reason)
        try:
            self._plan = make_plan(self._spec)
        except Unsupported as refusal:
            self._refused = Refused(str(refusal), self._refused)
            raise
        self._refused = None
        return self._plan

    def look_again(self) -> None:
        """Forget that there is no plan."""
        if self._refused is not None:
            self._refused.left = 0

    def known_refusal(self) -> str | None:
        """What `take` would raise if that is known without a check, else None; the call is counted.

        Each replay of a recorded step asks this, where an exception would take half a microsecond.
        """
        known = self._refused if self._plan is None else self._plan.refused
        return known.reason if known is not None and known.is_believed() else None

    def take(self, inputs: tuple[Any, ...], target: Any) -> Tensor:
        """Take the step natively."""
        plan, options, weight, input = self._ready(inputs)
        if plan.loss_like.dtype is not weight.dtype:
            plan.loss_like = weight.new_empty(())
        loss = torch.empty_like(plan.loss_like)
        self._call(plan, plan.native.run, input, target, loss, options)
        return loss

    def take_many(
        self, images: Tensor, labels: Tensor, rows: Tensor, steps: int, rates: Tensor | None
    ) -> Tensor:
        """Like `RecordedStep.take_many`."""
        plan, options, weight, images = self._ready((images,))
        losses = weight.new_empty(steps)
        count = self._call(plan, plan.native.run_batches, images, labels, losses, options, rows, rates)
        return losses[:count]

    def replay(self, inputs: tuple[Any, ...], target: Any) -> Tensor:
        """Take the step by a replay of a CUDA graph."""
        plan = self.find()
        if len(inputs) != 1:
            raise Unsupported("steps of several inputs are not captured")
        return plan.graphs.take(plan, inputs[0], target)

    def _ready(self, inputs: tuple[Any, ...]) -> tuple[StepPlan, LossOptions, Tensor, Tensor]:
        """Plan, options of the loss, the last layer's weight and the first one's input."""
        plan = self.find()
        options = plan.loss_options()
        if type(self._spec.optimizer.param_groups) is not list:
            raise Unsupported("param_groups is not a list")
        refuse(present_obstacle())
        weight = plan.last.get("weight")
        if weight is None:
            raise Unsupported("the last layer has no weight")
        if weight.dtype not in _DTYPES or not weight.is_cpu:
            raise Unsupported(f"the parameters are {weight.dtype} on {weight.device}")
        if len(inputs) != 1:
            raise Unsupported(f"the model is given {len(inputs)} inputs")
        if not isinstance(inputs[0], Tensor):
            raise Unsupported(f"the input is a {type(inputs[0]).__name__}, not a tensor")
        return plan, options, weight, inputs[0]

    def _call(self, plan: StepPlan, run: Callable[..., Any], *arguments: Any) -> int:
        """How many steps the plan's native `run` has taken."""
        run = labelled(run, "train_step")
        optimizer = self._spec.optimizer
        taken = run(optimizer.param_groups, optimizer.state, *arguments)
        if taken is None:
            make_state(optimizer, plan.update)
            taken = run(optimizer.param_groups, optimizer.state, *arguments)
        if type(taken) is int:
            plan.refused = None
            if taken:
                if plan.unused:
                    drop_gradients(plan.unused)
                note_step(optimizer)
            return taken
        reason = "the optimizer has no state" if taken is None else str(taken).splitlines()[0]
        # With native=True every step is checked.
        plan.refused = None if self._spec.native else Refused(reason, plan.refused)
        raise Unsupported(reason)
