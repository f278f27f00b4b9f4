"""Whether a program has replaced functions or classes of torch or fastnn whose work native code does.

``torch.nn.Linear.forward = mine`` is how some libraries add their adapters. Native code that runs instead
would bypass it, so it checks here first. Replacements made before fastnn was imported are found too: torch's
own functions are recognised by the file they come from.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import (
    BuiltinFunctionType,
    FunctionType,
    GetSetDescriptorType,
    MethodDescriptorType,
    ModuleType,
)
from typing import Any

import torch
import torch.nn.functional as F

from fastnn import _losses
from fastnn._torch_internals import INIT_GROUP, MODULE_CALL

_COMPILED = (BuiltinFunctionType, MethodDescriptorType, GetSetDescriptorType)
HOMES = tuple(f"{Path(package).parent}{os.sep}" for package in (torch.__file__, __file__))

Owner = type | ModuleType


def is_own(value: object) -> bool:
    """Whether it is torch's or fastnn's, in any of their own wrappers."""
    while isinstance(value, FunctionType):
        if not value.__code__.co_filename.startswith(HOMES):
            return False
        value = getattr(value, "__wrapped__", None)
    return value is None or isinstance(value, _COMPILED)


def original(owner: Owner, name: str) -> object:
    """What `name` stands for; None if it does not exist; for a foreign value a new object, which equals
    nothing."""
    value = getattr(owner, name, None)
    return value if is_own(value) else object()


def torchs_class(kind: type) -> Any:
    """The optimizer of torch that a class of ours replaces."""
    return next(base for base in kind.__mro__ if base.__module__.partition(".")[0] == "torch")


def parts_of_step(kind: type[torch.optim.Optimizer]) -> list[tuple[Owner, str]]:
    """What a step of an optimizer of torch's class `kind` runs, by name: its methods, and the functions of
    their module that do the update, such as ``torch.optim.adam.adam``."""
    found: list[tuple[Owner, str]] = [(kind, name) for name in ("step", INIT_GROUP) if hasattr(kind, name)]
    if is_own(kind.step):
        module = sys.modules[inspect.unwrap(kind.step).__module__]
        stem = module.__name__.rpartition(".")[2]
        found += [(module, name) for name in vars(module) if name == stem or name.endswith(f"_{stem}")]
    return found


def _add(watch: Any, owner: Owner, name: str, value: Any) -> None:
    if value is None:
        watch.class_absent(owner, name)
    elif isinstance(owner, type):
        watch.class_item(owner, name, value)
    else:
        watch.item(owner.__dict__, name, value)


class Names:
    """Names of classes or modules, with their values when they were listed.

    Attributes:
        unchanged: whether all still have them, in some 0.1 us; always True until `watch` was called.
    """

    def __init__(self, names: Iterable[tuple[Owner, str]]) -> None:
        self._names: list[tuple[Owner, str, Any]] = []
        self._watch: Any = None
        self.unchanged: Callable[[], bool] = lambda: True
        for owner, name in names:
            self.add(owner, name)

    def add(self, owner: Owner, name: str) -> None:
        """List another name; if it has already been replaced, it is never unchanged."""
        self._names.append((owner, name, original(owner, name)))
        if self._watch is not None:
            _add(self._watch, *self._names[-1])

    def of(self, kind: type) -> Names:
        """Those of the names that calls of `kind` use, its own and its bases'."""
        names = Names([])
        names._names = [entry for entry in self._names if entry[0] in kind.__mro__]
        if self._watch is not None:
            names.watch(type(self._watch)())
        return names

    def watch(self, watch: Any) -> None:
        """Check the names with a `Watch` of the compiled module from now on."""
        self._watch = watch
        self.add_to(watch)
        self.unchanged = watch.unchanged

    def add_to(self, watch: Any) -> None:
        """Register the names listed so far with a `Watch`."""
        for entry in self._names:
            _add(watch, *entry)

    def replaced(self) -> str | None:
        """Why native code must not run: a name that has been replaced; None if there is none."""
        return None if self.unchanged() else self.first_replaced()

    def first_replaced(self) -> str | None:
        """As `replaced`, whether they are watched or not."""
        for owner, name, value in self._names:
            if getattr(owner, name, None) is not value:
                inner = owner.__qualname__ if isinstance(owner, type) else ""
                module = owner.__module__ if isinstance(owner, type) else owner.__name__
                return f"{'.'.join(filter(None, (module, inner, name)))} was replaced"
        return None


# Functions whose work single ops do; each call of such an op checks them.
functions = Names(
    [
        *((F, name) for name in ("linear", "relu", "silu", "gelu", "cross_entropy")),
        *((torch, name) for name in ("relu", "sigmoid", "tanh")),
    ]
)
# Functions whose work only a training step does.
losses = Names(
    [
        *((F, name) for name in _losses.KINDS if name != "cross_entropy"),
        *((owner, "log_softmax") for owner in (F, torch)),
        (torch.autograd, "backward"),
        (torch.nn.utils, "clip_grad_norm_"),
        (torch.nn.Module, "parameters"),
    ]
)
classes = Names(
    [
        *((torch.nn.Module, name) for name in MODULE_CALL),
        *(
            (getattr(torch.nn, kind), name)
            for name in ("__call__", "forward", "__getattr__")
            for kind in (
                *("Linear", "ReLU", "Sigmoid", "Tanh", "GELU", "SiLU", "Sequential", "Flatten", "Identity"),
                *("LogSoftmax", *(loss.module.__name__ for loss in _losses.KINDS.values())),
            )
        ),
        *((torch.Tensor, name) for name in ("flatten", "log_softmax", "backward")),
        (torch.nn.Sequential, "__iter__"),
        # Absent, unless a property has been added there.
        *((torch.nn.Linear, name) for name in ("weight", "bias")),
    ]
)


def add_calls(kind: type) -> None:
    """Add the methods that a call of our module class uses to `classes`."""
    for name in ("__call__", "forward"):
        classes.add(kind, name)


def replaced_function() -> str | None:
    """Why no op may run natively: a torch function whose work an op does was replaced; else None."""
    return functions.replaced()


def replaced_class() -> str | None:
    """Why modules may not be bypassed: call or forward of one of their classes was replaced; else None."""
    return classes.replaced()
