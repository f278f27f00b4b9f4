"""What a function can reach other than the tensors among its arguments."""

from __future__ import annotations

import dis
import functools
import weakref
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn


def reached(fn: Any, others: list[Any]) -> list[Any]:
    """Objects in the closure of a function, in the globals that its code names, in the defaults of its
    arguments, the object of a method, and `others`: each with its attributes or elements, and the elements of
    attributes.

    Functions in a closure are followed too, those among the globals are not.
    """
    found: dict[int, Any] = {}
    waiting = [fn, *others]
    while waiting:
        for value in _beside(waiting.pop()):
            if id(value) in found:
                continue
            found[id(value)] = value
            if isinstance(value, (FunctionType, MethodType, functools.partial)) or wrapped(value):
                waiting.append(value)
                continue
            for part in _parts(value):
                found.setdefault(id(part), part)
    return list(found.values())


def _beside(fn: Any) -> Iterator[Any]:
    """Objects that a callable refers to."""
    if isinstance(fn, functools.partial):
        yield from (fn.func, *fn.args, *fn.keywords.values())
    elif isinstance(fn, MethodType):
        yield from (fn.__self__, fn.__func__)
    elif isinstance(fn, FunctionType):
        for cell in fn.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            yield value() if isinstance(value, weakref.ref) else value
        yield from fn.__defaults__ or ()
        yield from (fn.__kwdefaults__ or {}).values()
        for name in global_names(fn.__code__):
            value = fn.__globals__.get(name)
            if not isinstance(value, (FunctionType, ModuleType, type)):
                yield value
    else:
        yield wrapped(fn) or fn


def wrapped(value: Any) -> Any:
    """The function wrapped by a decorator's object, or None."""
    return getattr(value, "__dict__", {}).get("__wrapped__")


@functools.lru_cache(1024)  # the forwards of torch's modules are long, and read again for each recording
def global_names(code: CodeType) -> tuple[str, ...]:
    """The global variables that code reads, and functions within it: ``co_names`` has attributes too."""
    names = [i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names += global_names(constant)
    return tuple(dict.fromkeys(names))


def _parts(value: Any) -> Iterator[Any]:
    """Elements of a container; attributes of an object, and their elements."""
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        yield from value.values() if isinstance(value, dict) else value
    elif not isinstance(value, (nn.Module, Tensor, ModuleType, type)) and hasattr(value, "__dict__"):
        for attribute in list(vars(value).values()):
            yield attribute
            if isinstance(attribute, (list, tuple, set, frozenset, dict)):
                yield from _parts(attribute)
