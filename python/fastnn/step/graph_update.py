"""The optimizer's part of a captured training step.

A CUDA graph repeats kernels with their recorded arguments. So whatever may change from step to step is
read on the device: a row of numbers for each parameter group, written when they have changed, and the
step count. The optimizer's own state stays as torch has it: it is read before each replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastnn._dispatch import Unsupported
from fastnn._torch_internals import add_to_each
from fastnn.optim.native import match_layout

Group = dict[str, Any]

# For optimizers whose kernels read them on the device, in the order of the options in
# csrc/ops/<optimizer>/<optimizer>.h. The learning rate comes first.
_NUMBERS: dict[str, Callable[[Group], Sequence[Any]]] = {
    "adam": lambda g: (g["lr"], *g["betas"], g["eps"], g["weight_decay"]),
    "sgd": lambda g: (g["lr"], g["momentum"], g["dampening"], g["weight_decay"]),
}
COVERED = frozenset(_NUMBERS)
# Options that decide which kernels run.
_FLAGS = (
    *("amsgrad", "decoupled_weight_decay", "maximize", "nesterov"),
    *("capturable", "differentiable", "foreach", "fused"),
)


class GraphUpdate:
    """The update of all parameters that get a gradient, with the state that the optimizer has now.

    Raises `Unsupported` if the kernels do not cover it.

    Attributes:
        memory: the tensors whose addresses are passed to the kernels.
        written: those that each update writes; known after the first `run`.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, name: str, trained: Sequence[Tensor], kernels: Any
    ) -> None:
        self._optimizer = optimizer
        self._step = getattr(kernels, f"{name}_step")
        self._precision = (
            getattr(optimizer, "state_dtype", None) is not None,
            bool(getattr(optimizer, "master_weights", False)),
        )
        device = trained[0].device
        ids = {id(p) for p in trained}
        self._groups = [_Group(group, optimizer.state, name, ids, device) for group in optimizer.param_groups]
        self._others = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in ids]
        if not any(group.params for group in self._groups):
            raise Unsupported("the optimizer updates none of the parameters")
        if any(p.grad is not None for p in self._others):
            raise Unsupported("the optimizer has a gradient of a parameter that the step does not train")
        self.memory = [t for group in self._groups for t in group.memory()]
        self.written: list[Tensor] = []

    def watch(self, watch: Any) -> None:
        """Add what must not change: flags, the tensors of the state, and the containers that hold them."""
        attributes = self._optimizer.__dict__
        for name in ("param_groups", "state", "state_dtype", "master_weights"):
            if name in attributes:
                watch.item(attributes, name, attributes[name])
        for group in self._groups:
            group.watch(watch, self._optimizer.state)

    def holds(self) -> bool:
        """Whether groups and parameters are unchanged. Reads the numbers, for `refresh`."""
        groups = self._optimizer.param_groups
        return (
            len(groups) == len(self._groups)
            and all(
                group is mine.own and mine.holds() for group, mine in zip(groups, self._groups, strict=True)
            )
            and all(p.grad is None for p in self._others)
        )

    def refresh(self) -> None:
        """Copy to the device what has changed since the last step."""
        for group in self._groups:
            group.refresh()

    def run(self, skip: Tensor | None = None) -> None:
        """Update the parameters by their ``grad``, unless `skip`, read on the device, is 1."""
        written: list[Tensor] = []
        for group in self._groups:
            if not group.params:
                continue
            group.read_lr()
            arguments = (group.shadow, group.states, match_layout, None, skip, *self._precision)
            done = self._step(*arguments, group.numbers)
            if type(done) is not list:
                raise Unsupported("a parameter has no state" if done is None else str(done))
            if not group.holds_states():
                raise Unsupported("the optimizer does not have all of its state yet")
            written += done
        self.written = written

    def count_step(self) -> None:
        """Count, on the host, a step that was taken on the device."""
        for group in self._groups:
            group.count_step()


class _Group:
    """One group as passed to the kernels.

    Attributes:
        own: the optimizer's group.
        params: those that get a gradient.
        shadow: what the kernels read instead of `own`.
        states: what they read and write instead of the optimizer's state.
        numbers: float64 on the device, see `_NUMBERS`.
    """

    def __init__(
        self, own: Group, state: dict[Any, Any], name: str, trained: set[int], device: torch.device
    ) -> None:
        self.own = own
        self.params = [p for p in own["params"] if id(p) in trained]
        self._all = list(own["params"])  # kept alive, so that their ids are not reused
        self._ids = [*map(id, self._all)]
        self._has_momentum = bool(own.get("momentum"))
        self._lr = own["lr"] if isinstance(own["lr"], Tensor) and own["lr"].device == device else None
        if self._lr is not None and self._lr.numel() != 1:
            raise Unsupported("lr is a tensor, but not one number")
        self._read = _NUMBERS[name]
        self._device = device
        self._now = self._numbers()
        self._said = [float("nan")] * len(self._now)  # nothing has been written yet
        self.numbers = torch.zeros(len(self._said), dtype=torch.float64, device=device)
        self._number_views = self.numbers.unbind()

        self._states = [dict(state.get(p) or {}) for p in self.params]
        self.states: dict[Any, dict[str, Any]] = {
            p: dict(s) for p, s in zip(self.params, self._states, strict=True)
        }
        self.shadow = {**own, "params": self.params, "lr": 0.0}
        self._host_steps: list[Tensor] = []
        self._device_steps: Sequence[Tensor] = ()
        self._counts: list[float] = []
        if name == "adam" and not own["capturable"] and not own["fused"]:
            self._count_on_device()

    def _count_on_device(self) -> None:
        """Give the kernels a step count of their own: the optimizer's is on the host."""
        for s in self._states:
            if not isinstance(s.get("step"), Tensor) or not s["step"].is_cpu or s["step"].numel() != 1:
                raise Unsupported("the optimizer has no state, or no count of steps on the host")
            self._host_steps.append(s["step"])
        self._counts = [float("nan")] * len(self._host_steps)
        steps = torch.zeros(len(self._host_steps), dtype=torch.float32, device=self._device)
        self._device_steps = steps.unbind()
        self.shadow["capturable"] = True
        for p, step in zip(self.params, self._device_steps, strict=True):
            self.states[p]["step"] = step

    def memory(self) -> list[Tensor]:
        found = [] if self._lr is None else [self._lr]
        return found + [t for s in self._states for t in s.values() if isinstance(t, Tensor)]

    def watch(self, watch: Any, state: dict[Any, Any]) -> None:
        own = self.own
        watch.item(own, "params", own["params"])
        for flag in _FLAGS:
            if flag in own:
                watch.item(own, flag, own[flag])
            else:
                watch.absent(own, flag)
        if self._lr is not None:
            watch.item(own, "lr", self._lr)
        for p in self.params:
            if p in state:
                watch.item(state, p, state[p])
                watch.content(state[p])
            else:
                watch.absent(state, p)

    def holds(self) -> bool:
        """Whether, apart from what is watched, only numbers have changed, which are read."""
        own = self.own
        if [*map(id, own["params"])] != self._ids or bool(own.get("momentum")) != self._has_momentum:
            return False
        if self._lr is None and self._is_on_device(own["lr"]):
            return False
        try:
            self._now = self._numbers()
        except Unsupported:
            return False
        return True

    def holds_states(self) -> bool:
        """Whether the kernels' mapping still has its original entries: kernels add what is missing."""
        for p, given in zip(self.params, self._states, strict=True):
            now = self.states[p]
            if len(now) != len(given) or any(now[k] is not v for k, v in given.items() if k != "step"):
                return False
        return True

    def _is_on_device(self, value: object) -> bool:
        return isinstance(value, Tensor) and value.device == self._device

    def _numbers(self) -> list[float]:
        lr, *others = self._read(self.own)
        if any(isinstance(value, Tensor) and not value.is_cpu for value in others):
            raise Unsupported("an option other than lr is a tensor on the device")
        return [0.0 if self._lr is not None else float(lr), *map(float, others)]

    def refresh(self) -> None:
        for i, (value, said) in enumerate(zip(self._now, self._said, strict=True)):
            # By a kernel that takes the value as an argument: nothing waits, and no host memory is read that
            # the next step may have changed.
            if value != said:
                self._number_views[i].fill_(value)
                self._said[i] = value
        for i, step in enumerate(self._host_steps):
            count = step.item()
            if count != self._counts[i]:
                self._device_steps[i].fill_(count)
                self._counts[i] = count

    def read_lr(self) -> None:
        """Read, on the device, a learning rate that is stored there."""
        if self._lr is not None:
            self._number_views[0].copy_(self._lr.detach().reshape(()))

    def count_step(self) -> None:
        if self._host_steps:
            add_to_each(self._host_steps, 1)
            self._counts = [count + 1 for count in self._counts]
