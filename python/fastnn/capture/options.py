"""Detects functions that change the options of optimizers, which a replay would not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer

from fastnn.capture.contents import Contents


class Options:
    """The options of optimizers, including their parameters; only their own steps may change them."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        """Those known before the function runs."""
        self._noted: dict[int, tuple[Optimizer, Contents]] = {}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for name, value in group.items():
                    group[name] = _another(value)
            self.note(optimizer)

    def note(self, optimizer: Optimizer) -> None:
        """Accept its present options."""
        self._noted[id(optimizer)] = optimizer, Contents(optimizer.param_groups)

    def changed(self) -> str | None:
        """Why there can be no replay, if one has been changed since."""
        for optimizer, contents in self._noted.values():
            if contents.changed():
                return f"it changes the options of an optimizer, {type(optimizer).__name__}: do that outside"
        return None


def _another(value: Any) -> Any:
    """The same number as another object, which reveals a write of the same value: after a call in between by
    another program, that write would be missing."""
    if type(value) is tuple:
        return (*value,)
    return value * 1.0 if type(value) is float else value
