"""What an optimizer keeps in float32 for 16-bit parameters: its state, and master weights."""

from __future__ import annotations

import inspect
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastnn._replaced import torchs_class
from fastnn._torch_internals import OptimizerParts

_HALF = frozenset({torch.bfloat16, torch.float16})
_MASTER = "master_param"


class Float32State(OptimizerParts):
    """A base before one of torch's optimizers that adds ``state_dtype`` and ``master_weights``.

    Both belong to the optimizer and are in no parameter group: a checkpoint, which replaces the groups, does
    not affect them.
    """

    state_dtype: torch.dtype | None = None
    master_weights: bool = False
    __signature__: ClassVar[inspect.Signature | None]

    def __init_subclass__(cls, **options: Any) -> None:
        """Show the arguments of the installed torch, and the two that are added."""
        super().__init_subclass__(**options)
        cls.__signature__ = None  # not to be inherited
        if cls.__init__ is not Float32State.__init__:  # a user's own
            return
        theirs = inspect.signature(torchs_class(cls))
        own = inspect.signature(Float32State.__init__).parameters
        added = [own["state_dtype"], own["master_weights"]]
        cls.__signature__ = theirs.replace(parameters=[*theirs.parameters.values(), *added])

    def __init__(
        self,
        params: Any,
        *args: Any,
        state_dtype: torch.dtype | None = None,
        master_weights: bool = False,
        **options: Any,
    ) -> None:
        if state_dtype not in (None, torch.float32):
            error = ValueError if isinstance(state_dtype, torch.dtype) else TypeError
            raise error(f"state_dtype must be None or torch.float32, but is {state_dtype!r}")
        self.master_weights = bool(master_weights)
        self.state_dtype = torch.float32 if master_weights else state_dtype
        super().__init__(params, *args, **options)
        for param in self.state:  # Adagrad has created it
            self._widen(param, new=True)

    def _is_wide(self, param: Tensor) -> bool:
        """Whether the state of a parameter has another dtype than torch would give it."""
        return self.state_dtype is not None and param.dtype in _HALF

    def _widen(self, param: Tensor, new: bool) -> None:
        """Convert the state that torch made to float32; `new`: it has just been created."""
        if self._is_wide(param):
            state = self.state.get(param, {})
            for key, value in state.items():
                if _is_floating(key, value):
                    state[key] = value.to(torch.float32)

    def init_lists(self, group: dict[str, Any], *lists: list[Any]) -> Any:
        """Fill the lists as torch does, creating missing state, master weights included."""
        torchs = super().init_lists
        if self.state_dtype is not None:
            params = [p for p in group["params"] if p.grad is not None and self._is_wide(p)]
            new = [not self.state.get(p) for p in params]
            torchs(group, *([] for _ in lists))
            for param, is_new in zip(params, new, strict=True):
                self._widen(param, is_new)
                if self.master_weights and _MASTER not in self.state[param]:
                    self.state[param][_MASTER] = param.detach().to(torch.float32)
        return torchs(group, *lists)

    def _update_in_float32(self, group: dict[str, Any], lists: list[list[Any]], found: Any) -> None:
        """Let torch update master weights, or float32 copies, of the 16-bit parameters, and round them."""
        params, grads, *states = lists
        copies = {param: self._in_float32(param) for param in params if self._is_wide(param)}
        grad_copies = [g.to(torch.float32) if p in copies else g for p, g in zip(params, grads, strict=True)]
        self._update_as_given(group, [[copies.get(p, p) for p in params], grad_copies, *states], found)
        for param, copy in copies.items():
            param.copy_(copy)
        if getattr(self, "grad_scale", None) is not None:
            for grad, copy in zip(grads, grad_copies, strict=True):
                if copy is not grad:  # torch has unscaled the copy
                    grad.copy_(copy)

    def _in_float32(self, param: Tensor) -> Tensor:
        if not self.master_weights:
            return param.to(torch.float32)
        # The rule of csrc/ops/optim/master.h.
        master: Tensor = self.state[param][_MASTER]
        return master.copy_(torch.where(master.to(param.dtype) == param, master, param))

    def _update_as_given(self, group: dict[str, Any], lists: list[list[Any]], found: Any) -> None:
        """Let torch update these tensors instead of the group's."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, of this optimizer or of torch's; see :mod:`fastnn.optim` on 16 bits.

        Raises:
            ValueError: the parameter groups are not as many or as long as the optimizer's.
        """
        loaded: list[dict[str, Any]] = []
        # Runs after the user's pre-hooks and before their post-hooks.
        before = self.register_load_state_dict_pre_hook(lambda _, found: loaded.append(found))
        after = self.register_load_state_dict_post_hook(lambda _: self._restore(loaded[-1]), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _restore(self, loaded: dict[str, Any]) -> None:
        """Reload float32 state from a checkpoint: torch has rounded it to the parameter's dtype."""
        indices = chain.from_iterable(group["params"] for group in loaded["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, param in zip(indices, params, strict=True):
            state = self.state.get(param)
            if not state:
                continue
            if self._is_wide(param):
                for key, value in loaded["state"][index].items():
                    if _is_floating(key, value):
                        state[key] = value.to(device=param.device, dtype=torch.float32)
            if not (self.master_weights and self._is_wide(param)):
                state.pop(_MASTER, None)

    def __getstate__(self) -> dict[str, Any]:
        own = {"state_dtype": self.state_dtype, "master_weights": self.master_weights}
        return {**super().__getstate__(), **own}


def _is_floating(key: Any, value: Any) -> bool:
    """Whether a state entry is cast with its parameter."""
    return key != "step" and isinstance(value, Tensor) and value.is_floating_point()
