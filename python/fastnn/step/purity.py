"""Whether running a Python function once, on stand-ins for its tensors, tells all that it will ever do.

A trace sees the torch calls of a function and nothing else: not what it prints, draws, stores or reads from
the world outside. So a function is accepted only if its bytecode can do nothing of the kind: everything that
it reaches by name must be known to be harmless, and the plain values among them are handed out as guards.
"""

from __future__ import annotations

import builtins
import dis
import enum
import functools
import inspect
import math
import weakref
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from fastnn._dispatch import Unsupported


class Guard(NamedTuple):
    """`name` was `value`, and a trace holds only as long as ``holder.get(key)`` says the same."""

    holder: Any
    key: Any
    value: Any
    name: str

    def holds(self) -> bool:
        """Whether the value is still there: the same object, or an equal constant of the same type."""
        now = self.holder.get(self.key, MISSING)
        if now is self.value:
            return True
        # repr tells 0.0 from -0.0 and finds nan equal to itself.
        return type(now) is type(self.value) and is_constant(now) and repr(now) == repr(self.value)


class Attribute:
    """What a name gives on a module or a class, read as a mapping for a `Guard`."""

    def __init__(self, owner: Any) -> None:
        self._owner = weakref.ref(owner)  # a guard may be kept by what it guards

    @property
    def owner(self) -> Any:
        """The object, or None where it is gone."""
        return self._owner()

    def get(self, name: str, default: object) -> object:
        """The attribute, as a dict would give it."""
        return getattr(self._owner(), name, default)


class _Cell:
    """A variable of an enclosing function, read as a mapping for a `Guard`."""

    def __init__(self, cell: Any) -> None:
        self.cell = cell

    def get(self, _: str, default: object) -> object:
        try:
            return self.cell.cell_contents
        except ValueError:
            return default


MISSING = object()
_CONSTANTS = (
    *(bool, int, float, complex, str, bytes, type(None), type(...)),
    *(torch.dtype, torch.device, torch.Size),
)
_BUILTINS = (
    *(
        abs,
        all,
        any,
        bool,
        dict,
        divmod,
        enumerate,
        filter,
        float,
        getattr,
        int,
        len,
        list,
        map,
        max,
        min,
        pow,
    ),
    *(range, reversed, round, set, slice, sorted, str, sum, tuple, zip),
)
# With statements, imports and classes run code that a trace does not see, an attribute or a global that is
# written outlives the call, a try statement may catch what only stand-ins raise, and a stand-in takes x += y
# for x = x + y.
_FORBIDDEN = {
    **dict.fromkeys(("STORE_ATTR", "DELETE_ATTR"), "it writes the attribute {}"),
    **dict.fromkeys(("STORE_GLOBAL", "DELETE_GLOBAL"), "it writes the global {}"),
    **dict.fromkeys(("IMPORT_NAME",), "it imports {}"),
    **dict.fromkeys(
        ("SETUP_WITH", "BEFORE_WITH", "SETUP_ASYNC_WITH", "BEFORE_ASYNC_WITH", "LOAD_SPECIAL"),
        "it has a with statement",
    ),
    **dict.fromkeys(("SETUP_FINALLY", "PUSH_EXC_INFO"), "it has a try statement"),
    "LOAD_BUILD_CLASS": "it defines a class",
}
_FILLERS = frozenset({"CACHE", "EXTENDED_ARG", "PUSH_NULL", "PRECALL"})
# Written in terms of tensor methods, or drawn from torch's generator on a tensor: seen by a trace too.
_MORE_TORCH = (
    *(F.tanh, F.sigmoid, F.relu_, torch.relu_, torch.tanh_, torch.sigmoid_),
    *(torch.rand_like, torch.randn_like, torch.zeros_like, torch.ones_like),
)


@functools.cache
def _torch_functions() -> frozenset[int]:
    """The torch functions that a trace records, because they ask their arguments what to do."""
    known = [f for functions in torch.overrides.get_overridable_functions().values() for f in functions]
    return frozenset(map(id, [*known, *_MORE_TORCH]))


def is_constant(value: object) -> bool:
    """Whether `value` is of a kind that can never change."""
    if type(value) is tuple:
        return all(map(is_constant, value))
    return type(value) in _CONSTANTS or isinstance(value, enum.Enum)


def check_value(value: object, name: str) -> list[Guard]:
    """The guards of a value that a traced function uses, itself constant or a function.

    Raises:
        Unsupported: the value may change, or do more than compute.
    """
    if is_constant(value) or id(value) in _torch_functions():
        return []
    if isinstance(value, FunctionType):
        return check_function(value)
    if isinstance(value, BuiltinFunctionType) and value.__module__ == math.__name__:
        return []
    if isinstance(value, type) and issubclass(value, (tuple, BaseException)) and value is not tuple:
        return []  # made of what is passed: named tuples and errors
    kind = "a module" if isinstance(value, ModuleType) else f"of type {type(value).__name__}"
    if callable(value):
        raise Unsupported(f"it uses {name}, of which nothing is known")
    raise Unsupported(f"it reads {name}, {kind}, which may change")


def check_function(function: Callable[..., Any]) -> list[Guard]:
    """The guards of a Python function: the global constants and functions that it reads.

    Raises:
        Unsupported: it may do more than compute from its arguments, or is no plain function.
    """
    guards: list[Guard] = []
    _check_function(function, guards, set())
    return guards


def _check_function(function: Any, guards: list[Guard], seen: set[int]) -> None:
    if id(function) in seen:
        return
    seen.add(id(function))
    name = getattr(function, "__qualname__", type(function).__name__)
    package = (getattr(function, "__module__", None) or "").partition(".")[0]
    if not isinstance(function, FunctionType) or hasattr(function, "__wrapped__") or package == "torch":
        raise Unsupported(f"nothing is known of {name}, which is no plain function")
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        raise Unsupported(f"{name} is a generator or a coroutine")
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    if not all(map(is_constant, defaults)):
        raise Unsupported(f"{name} has a default value that may change")
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    for code in _codes(function.__code__):
        _check_code(code, function.__globals__, cells, guards, seen)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code and that of the functions defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _check_code(
    code: CodeType, names: dict[str, Any], cells: dict[str, Any], guards: list[Guard], seen: set[int]
) -> None:
    instructions = [i for i in dis.get_instructions(code) if i.opname not in _FILLERS]
    for place, instruction in enumerate(instructions):
        opname, name = instruction.opname, instruction.argval
        if opname in _FORBIDDEN:
            raise Unsupported(_FORBIDDEN[opname].format(name))
        if opname.startswith("INPLACE_") or (opname == "BINARY_OP" and instruction.argrepr.endswith("=")):
            raise Unsupported("it has an augmented assignment (x += y)")
        if opname in ("LOAD_ATTR", "LOAD_METHOD") and str(name).startswith("__"):
            raise Unsupported(f"it reads {name}")
        if opname in ("STORE_DEREF", "DELETE_DEREF") and name in cells:
            raise Unsupported(f"it writes {name} of an enclosing function")
        if opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            if name in names:
                _check_path(names, name, instructions[place + 1 :], guards, seen)
            elif hasattr(builtins, name):
                _check_builtin(name)
            else:
                raise Unsupported(f"it reads {name}, which is not defined")
        elif opname in ("LOAD_DEREF", "LOAD_CLASSDEREF") and name in cells:
            _check_path(_Cell(cells[name]), name, instructions[place + 1 :], guards, seen)


def _check_builtin(name: str) -> None:
    value = getattr(builtins, name)
    if value not in _BUILTINS and not (isinstance(value, type) and issubclass(value, BaseException)):
        raise Unsupported(f"it uses {name}")


def _check_path(
    holder: Any, name: str, following: list[dis.Instruction], guards: list[Guard], seen: set[int]
) -> None:
    """Check what ``name.attribute.attribute`` stands for, as far as modules lead."""
    value, key, path = holder.get(name, MISSING), name, name
    for instruction in following:
        if not isinstance(value, ModuleType) or instruction.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            break
        guards.append(Guard(holder, key, value, path))
        key = instruction.argval
        holder = value.__dict__ if key in value.__dict__ else Attribute(value)
        value, path = getattr(value, key, MISSING), f"{path}.{key}"
    if value is MISSING:
        raise Unsupported(f"it reads {path}, which is not defined")
    if isinstance(value, FunctionType) and id(value) not in _torch_functions():
        _check_function(value, guards, seen)
    else:
        check_value(value, path)
    guards.append(Guard(holder, key, value, path))
