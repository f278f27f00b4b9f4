"""What a function finds by name: models, optimizers, tensors and numbers beside its arguments."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from fastnn import _replaced
from fastnn.capture.names import Code, forward_of, has_attributes, is_library, names_in_class
from fastnn.capture.reach import reached

# Where numbers are drawn that torch does not know, by the module that code names.
_GENERATORS: dict[str, tuple[str, Callable[[], Any]]] = {
    "random": ("Python's random", random.getstate),
    "numpy": ("numpy.random", lambda: np.random.get_state(legacy=False)),
}


class Surroundings:
    """Variables and attributes that a function's code reads, and what they are before it runs.

    It is what they are bound to that counts: containers are not looked into, since buffers and logs fill.
    """

    def __init__(self, fn: Any) -> None:
        self._noted: list[tuple[str, tuple[Any, ...]]] = []
        code = Code(self)
        code.found(fn)
        code.follow_methods()
        nearby = {id(m): m for root in reached(fn) if isinstance(root, nn.Module) for m in root.modules()}
        for module in (code.modules | nearby).values():
            kind = type(module)
            own = names_in_class(kind) if _replaced.is_own(forward_of(kind)) else frozenset()
            self._note_attributes(module, code.names | own)
            if "forward" not in module.__dict__:
                self._noted.append(("absent", (module.__dict__, "forward")))
        for other in code.objects.values():
            if has_attributes(other):
                self._note_attributes(other, code.read_of(other))
                for name in code.read_of(other) & other.__dict__.keys():
                    if has_attributes(other.__dict__[name]):
                        self._note_attributes(other.__dict__[name], code.names)
        self._draws = [
            (name, state, state())
            for module, (name, state) in _GENERATORS.items()
            if module in code.libraries
        ]

    def item(self, holder: dict[str, Any], name: str, value: Any) -> None:
        """As a Watch's: a global variable."""
        self._noted.append(("item", (holder, name, value)))

    def attribute(self, holder: Any, name: str, value: Any) -> None:
        """As a Watch's: a variable of an enclosing function."""
        self._noted.append(("attribute", (holder, name, value)))

    def class_item(self, kind: type, name: str, value: Any) -> None:
        """As a Watch's: what an object has from its class."""
        self._noted.append(("class_item", (kind, name, value)))

    def _note_attributes(self, of: Any, names: set[str] | frozenset[str]) -> None:
        for name in names & of.__dict__.keys():
            self.item(of.__dict__, name, of.__dict__[name])
        of_class: set[str] = set().union(
            *(vars(base) for base in type(of).__mro__ if not is_library(base.__module__))
        )
        for name in (names & of_class) - of.__dict__.keys():  # it may have its own some day
            self._noted.append(("absent", (of.__dict__, name)))

    def drawn(self) -> str | None:
        """Where the function has drawn numbers that a replay would not draw, or None."""
        for name, state, before in self._draws:
            if repr(state()) != repr(before):
                return name
        return None

    def changed(self) -> list[str]:
        """Which names are bound to something else now; they are not watched then."""
        kept, names = [], []
        for method, (holder, name, *value) in self._noted:
            if method == "item":
                same = name in holder and _is_same(holder[name], value[0])
            elif method == "absent":
                same = name not in holder
            else:
                same = _is_same(getattr(holder, name, None), value[0])
            if same:
                kept.append((method, (holder, name, *value)))
            else:
                names.append("a variable" if name == "cell_contents" else name)
        self._noted = kept
        return names

    def watch(self, watch: Any) -> None:
        """Add them to a Watch."""
        for method, arguments in self._noted:
            getattr(watch, method)(*arguments)


def _is_same(value: Any, other: Any) -> bool:
    """As a Watch's: numbers, text and tuples of them by what they are, others by identity."""
    if value is other or type(value) is not type(other):
        return value is other
    if type(value) is tuple:
        return len(value) == len(other) and all(map(_is_same, value, other))
    return type(value) in (int, float, str) and repr(value) == repr(other)
