"""The step that all optimizers share: each parameter group in one native call, or left to torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fastnn import _dispatch, _replaced
from fastnn._torch_internals import check_graph_capture, fill_lists, is_profiling
from fastnn.optim._float32 import Float32State
from fastnn.optim._fused import fit_for_fused, unscale
from fastnn.optim._hooks import hooked_when_needed, wrap_replaced_step

_torch_zero_grad = _replaced.original(torch.optim.Optimizer, "zero_grad")


def match_layout(param: Tensor, grad: Tensor) -> Tensor:
    """A copy of `grad` in the memory order of `param`."""
    with torch.no_grad():
        return torch.empty_like(param).copy_(grad)


class NativeOptimizer(Float32State):
    """A base before one of torch's optimizers that replaces its ``step``."""

    _op: ClassVar[str]  # its name in decisions; `<op>_step` is the native function
    _lists: ClassVar[int]  # how many lists torch's function takes
    _torchs: ClassVar[Any]  # the torch class that it replaces

    def __init_subclass__(cls, **options: Any) -> None:
        """Note which torch class it replaces."""
        super().__init_subclass__(**options)
        cls._torchs = _replaced.torchs_class(cls)

    def step_is_wrapped(self) -> None:
        """Wrap, as torch does, a step by which torch's own was replaced in its class."""
        wrap_replaced_step(self._torchs)

    @hooked_when_needed
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters once.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            The loss that ``closure`` returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        reason = self._torch_reason()
        for group in self.param_groups:
            why = self._step_group(group) if reason is None else reason
            if not _dispatch.decide(self._op, why):
                self._step_group_with_torch(group)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or set them to zero.

        As in torch, but while no profiler runs without torch's label for one, which takes as long as the
        update of a small network.

        Args:
            set_to_none: drop them, so that the next backward need not add to them.
        """
        if not set_to_none or is_profiling() or self._torchs.zero_grad is not _torch_zero_grad:
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.grad = None

    def _torch_reason(self) -> str | None:
        """Why torch must update every group, or None."""
        return _dispatch.torch_reason()

    def _step_group(self, group: dict[str, Any]) -> str | None:
        """Update one group natively; if that is impossible, leave it unchanged and return why."""
        params = group["params"]
        kernels = _dispatch.cpu
        if params:
            reason = None if params[0].is_cpu else _dispatch.torch_reason(params[0], cuda=self._op)
            if reason is not None:
                return reason
            kernels = _dispatch.native(params[0])
        attributes = self.__dict__
        scaling = (attributes.get("grad_scale"), attributes.get("found_inf"))
        if kernels != _dispatch.cpu and check_graph_capture is not None and "capturable" in self.defaults:
            check_graph_capture(self)
        native_step = getattr(kernels, self._op + "_step")
        arguments = (group, self.state, match_layout, *scaling, self.state_dtype is not None)
        written = native_step(*arguments, self.master_weights)
        if written is None:
            self._gather(group)
            written = native_step(*arguments, self.master_weights)
        if type(written) is list:
            increment_version(written)
            return None
        return "a parameter has no state" if written is None else str(written)

    def _gather(self, group: dict[str, Any]) -> tuple[list[list[Any]], Any]:
        """The tensors of a group in lists, as torch's functions take them, and what else torch returned.

        Creates missing state.
        """
        lists: list[list[Any]] = [[] for _ in range(self._lists)]
        found = fill_lists(self, group, lists)
        return lists, found

    def _step_group_with_torch(self, group: dict[str, Any]) -> None:
        if check_graph_capture is not None and "capturable" in self.defaults:
            check_graph_capture(self)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            update = self._update_as_given if self.state_dtype is None else self._update_in_float32
            update(group, *self._gather(group))

    def _update_as_given(self, group: dict[str, Any], lists: list[list[Any]], found: Any) -> None:
        # What a GradScaler leaves to torch's fused functions.
        scaling = {name: getattr(self, name, None) for name in ("grad_scale", "found_inf")}
        fused = group.get("fused")
        if fused and not self._fit_for_fused(group, lists):
            if not unscale(lists[1], **scaling):
                return
            fused, scaling = None, dict.fromkeys(scaling)
            if lists[0][0].is_cpu:  # where only torch's fused functions take it
                group = {**group, "capturable": False}
        self._torch_update(group, lists, found, {"fused": fused, **scaling})

    def _fit_for_fused(self, group: dict[str, Any], lists: list[list[Any]]) -> bool:
        """Whether torch's fused function updates these tensors correctly."""
        return fit_for_fused(lists)

    def _torch_update(
        self, group: dict[str, Any], lists: list[list[Any]], found: Any, fused: dict[str, Any]
    ) -> None:
        """Call torch's own function; `fused` are its arguments for fused kernels."""
        raise NotImplementedError


def update_name(kind: type[NativeOptimizer]) -> str:
    """The name of the native update of an optimizer's class."""
    return kind._op


def make_state(optimizer: torch.optim.Optimizer, kind: type[NativeOptimizer]) -> None:
    """Make an optimizer create the state that its first step would create.

    It does so for parameters that have a gradient, of which only the shape matters.

    Args:
        optimizer: an instance of `kind`, or of the torch class that `kind` replaces.
        kind: see there.
    """
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = param.detach()
        try:
            fill_lists(optimizer, group, [[] for _ in range(kind._lists)])
        finally:
            for param in group["params"]:
                param.grad = None
