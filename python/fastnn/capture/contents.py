"""What lists, dicts and objects hold, at any depth: to detect changes, and to restore it."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_ELEMENTS = (list, deque, set)
# Not looked into. A module's own values are its parameters and buffers, which are trained.
_CLOSED: tuple[type, ...] = (
    *(bool, int, float, complex, str, bytes, type(None), type, ModuleType),
    *(FunctionType, BuiltinFunctionType, MethodType, nn.Module, *weakref.ProxyTypes),
)


class Contents:
    """Containers and objects that can be reached from one, with what they hold at one moment.

    Attributes:
        tensors: those found on the way.
    """

    def __init__(self, root: dict[Any, Any] | list[Any], known: Iterable[Any] = ()) -> None:
        """Objects in `known` are skipped."""
        self.tensors: list[Tensor] = []
        self._held: list[tuple[Any, Any]] = []
        self._undo: list[Callable[[], Any]] = []  # for NumPy arrays and random generators
        seen = set(map(id, known))
        waiting: list[Any] = [root]
        while waiting:
            value = waiting.pop()
            if id(value) not in seen and not isinstance(value, _CLOSED):
                seen.add(id(value))
                waiting.extend(self._look_at(value))

    def _look_at(self, value: Any) -> Iterable[Any]:
        if isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, torch.Generator):
            state = value.get_state()
            self._undo.append(lambda: value.set_state(state))
        elif isinstance(value, np.random.Generator):
            drawn = value.bit_generator.state
            self._undo.append(lambda: setattr(value.bit_generator, "state", drawn))
        elif isinstance(value, np.ndarray):
            numbers = value.copy()
            self._undo.append(lambda: np.copyto(value, numbers))
        elif isinstance(value, dict):
            self._held.append((value, dict(value)))
            return value.values()
        elif isinstance(value, _ELEMENTS):
            self._held.append((value, list(value)))
            return list(value)
        elif isinstance(value, (tuple, frozenset)):
            return value
        else:
            return [getattr(value, "__dict__", None)]
        return ()

    def changed(self) -> bool:
        """Whether a container or an object holds something else; what is in a tensor is not compared."""
        return any(not _holds(container, held) for container, held in self._held)

    def restore(self) -> None:
        """Restore it, except for the values of tensors."""
        for container, held in self._held:
            if not _holds(container, held):
                container.clear()
                (container.extend if isinstance(container, (list, deque)) else container.update)(held)
        for undo in self._undo:
            undo()


def _holds(container: Any, held: Any) -> bool:
    if len(container) != len(held):
        return False
    if isinstance(container, dict) and not _same(list(container), list(held)):
        return False
    return _same(container.values(), held.values()) if isinstance(container, dict) else _same(container, held)


def _same(values: Iterable[Any], others: Iterable[Any]) -> bool:
    """Whether they are the same objects: a float that was written again is another one."""
    return all(
        a is b or (type(a) is type(b) and type(a) in (int, str) and a == b)
        for a, b in zip(values, others, strict=True)
    )
