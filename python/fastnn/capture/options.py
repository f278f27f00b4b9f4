"""Detects functions that change the options of optimizers, which a replay would not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer

from fastnn.capture.contents import Contents


class Options:
    """The options of optimizers, parameters among them; a step of theirs may change them."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        """Those that are known before the function runs."""
        self._noted: dict[int, tuple[Optimizer, Contents]] = {}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for name, value in group.items():
                    group[name] = _another(value)
            self.note(optimizer)

    def note(self, optimizer: Optimizer) -> None:
        """They are right as they are."""
        self._noted[id(optimizer)] = optimizer, Contents(optimizer.param_groups)

    def changed(self) -> str | None:
        """Why there can be no replay, where somebody has changed one since."""
        for optimizer, contents in self._noted.values():
            if contents.changed():
                return f"it changes the options of an optimizer, {type(optimizer).__name__}: do that outside"
        return None


def _another(value: Any) -> Any:
    """The same number as another object, which shows where somebody writes what is there already: in a call
    that comes between, by another program, it would be missing."""
    if type(value) is tuple:
        return (*value,)
    return value * 1.0 if type(value) is float else value
