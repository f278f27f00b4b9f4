"""The parameters of a model, needed by a step in every call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastnn import _dispatch, _replaced
from fastnn._dispatch import Unsupported
from fastnn.capture.watch import watch_tables

_torch_zero_grad = _replaced.original(torch.nn.Module, "zero_grad")


def clears_by_itself(model: torch.nn.Module) -> bool:
    """Whether `model.zero_grad()` differs from torch's own."""
    return "zero_grad" in model.__dict__ or type(model).zero_grad is not _torch_zero_grad


def drop_gradients(params: Iterable[Tensor]) -> None:
    """Set every ``.grad`` to None."""
    for p in params:
        if p.grad is not None:
            p.grad = None


class ParameterList:
    """``list(model.parameters())``, which takes as long as an operation of a small network.

    It is made again if a table of a module has changed, and each time if that cannot be seen.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._watch: Any = None
        self._list: list[Tensor] = []

    def now(self) -> list[Tensor]:
        """The parameters, each once."""
        if self._watch is None or not self._watch.unchanged():
            self._list = list(self._model.parameters())
            self._watch = self._watched()
        return self._list

    def _watched(self) -> Any:
        if _dispatch.cpu_missing is not None:
            return None
        watch = _dispatch.cpu.Watch()
        try:
            watch_tables(watch, self._model)
        except Unsupported:
            return None
        return watch
