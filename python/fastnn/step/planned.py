"""Steps of chains of linear layers, by `plan.py`: in a native call, or by a replay of a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnn._dispatch import Unsupported
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
    """Takes the steps of a spec by its plan, if there is one."""

    def __init__(self, spec: StepSpec) -> None:
        self._spec = spec
        self._plan: StepPlan | Refused | None = None

    def find(self) -> StepPlan | Refused:
        """The current plan if it still holds, else a new one, or why there is none."""
        last = self._plan
        if isinstance(last, StepPlan):
            if last.holds():
                return last
            last = None
        elif last is not None and last.is_believed():
            return last
        try:
            self._plan = make_plan(self._spec)
        except Unsupported as refusal:
            self._plan = Refused(str(refusal), last)
        return self._plan

    def look_again(self) -> None:
        """Forget that there is no plan."""
        if isinstance(self._plan, Refused):
            self._plan.left = 0

    def take(self, inputs: tuple[Any, ...], target: Any) -> Tensor | str:
        """Take the step natively, or, with nothing changed, return why that is impossible."""
        known = self._plan.refused if isinstance(self._plan, StepPlan) else None
        if known is not None and not self._spec.native and known.is_believed():
            return known.reason
        ready = self._ready(inputs)
        if isinstance(ready, str):
            return ready
        plan, options, weight, input = ready
        if plan.loss_like.dtype is not weight.dtype:
            plan.loss_like = weight.new_empty(())
        loss = torch.empty_like(plan.loss_like)
        taken = self._call(plan, plan.native.run, input, target, loss, options)
        return taken if isinstance(taken, str) else loss

    def take_many(
        self, images: Tensor, labels: Tensor, rows: Tensor, steps: int, rates: Tensor | None
    ) -> Tensor | str:
        """Like `RecordedStep.take_many`."""
        ready = self._ready((images,))
        if isinstance(ready, str):
            return ready
        plan, options, weight, images = ready
        losses = weight.new_empty(steps)
        count = self._call(plan, plan.native.run_batches, images, labels, losses, options, rows, rates)
        return count if isinstance(count, str) else losses[:count]

    def replay(self, inputs: tuple[Any, ...], target: Any) -> Tensor | str:
        """Take the step by a replay of a CUDA graph, or, with nothing changed, return why not."""
        plan = self.find()
        if isinstance(plan, Refused):
            return plan.reason
        if len(inputs) != 1:
            return "steps of several inputs are not captured"
        return plan.graphs.take(plan, inputs[0], target)

    def _ready(self, inputs: tuple[Any, ...]) -> tuple[StepPlan, LossOptions, Tensor, Tensor] | str:
        """Plan, options of the loss, the last layer's weight and the first one's input; or why the native
        call cannot be tried."""
        plan = self.find()
        if isinstance(plan, Refused):
            return plan.reason
        options = plan.loss_options()
        if isinstance(options, str):
            return options
        if type(self._spec.optimizer.param_groups) is not list:
            return "param_groups is not a list"
        if (obstacle := present_obstacle()) is not None:
            return obstacle
        weight = plan.last.get("weight")
        if weight is None:
            return "the last layer has no weight"
        if weight.dtype not in _DTYPES or not weight.is_cpu:
            return f"the parameters are {weight.dtype} on {weight.device}"
        if len(inputs) != 1:
            return f"the model is given {len(inputs)} inputs"
        if not isinstance(inputs[0], Tensor):
            return f"the input is a {type(inputs[0]).__name__}, not a tensor"
        return plan, options, weight, inputs[0]

    def _call(self, plan: StepPlan, run: Callable[..., Any], *arguments: Any) -> int | str:
        """How many steps the plan's native `run` has taken; or, with nothing changed, why it cannot."""
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
        plan.refused = Refused(reason, plan.refused)
        return reason
