"""What the next step of any model depends on, watched: where that changes, the step is recorded anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from inspect import getattr_static
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

from fastnn import _replaced, _torch_internals
from fastnn._dispatch import Unsupported
from fastnn._torch_internals import COMPILED, COMPILED_CALL, MODULES
from fastnn.capture.reach import global_names
from fastnn.capture.watch import watch_globals, watch_hooks, watch_optimizer

_TABLES = (_torch_internals.PARAMETERS, _torch_internals.BUFFERS, _torch_internals.MODULES)
_LARGEST = 256  # entries of a container that is watched: a vocabulary stays what it is
_CALL = (*_torch_internals.MODULE_CALL, "forward", "zero_grad", "parameters")
_LIBRARIES = ("torch", "fastnn", "builtins")


def watch_step(watch: Any, model: torch.nn.Module, loss: Any, optimizer: torch.optim.Optimizer) -> None:
    """Everything that a recording of the step takes as it finds it.

    That is the modules' classes, attributes, parts and hooks, the hooks of parameters, the optimizer's, and
    what the code of forwards and losses that are not torch's reads: variables and attributes by name, in the
    functions and methods that it calls too. Not watched is what lies deeper: in an attribute of an attribute
    of an attribute, or in what another library's code reads.

    Raises:
        Unsupported: there is a hook, or something else that a replay would pass by.
    """
    # First what most often stands in the way: reading code takes longer.
    watch_globals(watch)
    watch_optimizer(watch, optimizer)
    roots = [root for root in (model, loss) if isinstance(root, torch.nn.Module)]
    modules = {id(m): m for root in roots for m in root.modules()}
    for module in modules.values():
        watch_hooks(watch, module)
    params = {id(p): p for m in modules.values() for p in m.parameters(recurse=False)}
    params |= {id(p): p for group in optimizer.param_groups for p in group["params"]}
    for p in params.values():
        if _torch_internals.on_leaf(p):
            raise Unsupported("a parameter has a hook")
        watch.unhooked(p, _torch_internals.on_accumulator)
    for names in (_replaced.classes, _replaced.losses, _replaced.functions):
        names.add_to(watch)
    code = _Code(watch)
    code.found(model)
    code.found(loss)
    code.follow_methods()
    for key, module in code.modules.items():
        if key not in modules:  # a teacher, perhaps
            watch_hooks(watch, module)
        _watch_module(watch, module, code.names)
    for other in code.objects.values():
        _watch_inside(watch, other, code.names)


def _watch_module(watch: Any, module: torch.nn.Module, names: set[str]) -> None:
    kind, state = type(module), module.__dict__
    watch.type(module)
    if state.get(COMPILED_CALL) is not None or COMPILED in state[MODULES]:
        raise Unsupported(f"{kind.__name__} is compiled")
    for name in _CALL:
        watch.class_item(kind, name, getattr(kind, name))
    for table in _TABLES:
        if not isinstance(state[table], dict):
            raise Unsupported(f"{kind.__name__} keeps its parts where they are not watched")
        watch.content(state[table])
    read = names | {"training", "forward"}
    if _replaced.is_own(kind.forward):
        read = read | _names_in_class(kind)
    _watch_named(watch, state, read, 2)


def _watch_named(watch: Any, table: dict[str, Any], names: set[str], depth: int) -> None:
    """Attributes with these names: others, such as a counter of steps, may change."""
    for name in names:
        if name in table:
            watch.item(table, name, table[name])
            _watch_inside(watch, table[name], names, depth - 1)
        else:
            watch.absent(table, name)


def _watch_inside(watch: Any, value: Any, names: set[str], depth: int = 2) -> None:
    """What a container holds, if not too much, or a plain object has as attributes of these names."""
    if isinstance(value, (dict, list)):
        if len(value) <= _LARGEST:
            (watch.content if isinstance(value, dict) else watch.elements)(value)
    elif depth and _is_plain(value):
        kind = type(value)
        for name in () if _is_library(kind.__module__) else names:
            if hasattr(kind, name):
                watch.class_item(kind, name, getattr(kind, name))
        _watch_named(watch, value.__dict__, names, depth)


def _is_plain(value: Any) -> bool:
    """Whether it is an object with attributes of its own and no more."""
    others = (torch.nn.Module, torch.Tensor, torch.optim.Optimizer, FunctionType, MethodType, partial, type)
    return isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, (*others, ModuleType))


class _Code:
    """What code reads by name: global variables, those of enclosing functions, and, of functions that are
    called so, what their code reads.

    Attributes:
        names: of attributes that the code reads, whatever of.
        modules: those that are called, by their ids, and their parts.
        objects: others that it finds under the names of variables.
    """

    def __init__(self, watch: Any) -> None:
        self.names: set[str] = set()
        self.modules: dict[int, torch.nn.Module] = {}
        self.objects: dict[int, Any] = {}
        self._watch = watch
        self._seen: set[tuple[int, type | None]] = set()

    def found(self, value: Any) -> None:
        """Follow what is called, or is under the name of a variable."""
        if isinstance(value, torch.nn.Module):
            for module in value.modules():
                if id(module) not in self.modules:
                    self.modules[id(module)] = module
                    self._read(type(module).forward, type(module))
                    for attribute in list(module.__dict__.values()):
                        if isinstance(attribute, (FunctionType, MethodType, partial)):
                            self.found(attribute)
        elif isinstance(value, partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                self.found(part)
        elif isinstance(value, MethodType):
            self.found(value.__self__)
            self._read(value.__func__, type(value.__self__))
        elif isinstance(value, FunctionType):
            self._read(value, None)
        elif _is_plain(value) or isinstance(value, (dict, list)):
            self.objects[id(value)] = value
            self._read(getattr_static(type(value), "__call__", None), type(value))

    def follow_methods(self) -> None:
        """Read what objects have under the names of attributes that the code reads."""
        known = -1
        while known != len(self._seen):
            known = len(self._seen)
            for value in [*self.modules.values(), *self.objects.values()]:
                self._read_class(type(value), set(self.names))

    def _read(self, function: Any, owner: type | None) -> None:
        """Watch what `function` reads; `owner` is the class whose attributes it reads of itself.

        Of torch's and fastnn's functions only the names are watched, for somebody may replace what they
        stand for; what is behind them is not followed.
        """
        if not isinstance(function, FunctionType) or (id(function), owner) in self._seen:
            return
        self._seen.add((id(function), owner))
        follow = not _replaced.is_own(function)
        names = set(_attributes(function.__code__))
        if follow:
            self.names |= names
            for cell in function.__closure__ or ():
                with contextlib.suppress(ValueError):  # nothing is assigned yet
                    self._watch.attribute(cell, "cell_contents", cell.cell_contents)
                    self._variable(cell.cell_contents, names)
            for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
                self.found(default)
            self._read_class(torch.Tensor, names)
        for name in set(global_names(function.__code__)):
            if name in function.__globals__:
                value = function.__globals__[name]
                self._watch.item(function.__globals__, name, value)
                if follow or isinstance(value, ModuleType):
                    self._variable(value, names)

    def _variable(self, value: Any, names: set[str]) -> None:
        if isinstance(value, ModuleType):
            self._read_module(value, names, set())
        elif isinstance(value, type):
            self._read_class(value, names)
        else:
            self.found(value)

    def _read_module(self, module: ModuleType, names: set[str], within: set[int]) -> None:
        """Those `names` that are read of a module of Python, perhaps, or of one in it."""
        if id(module) in within:
            return
        for name in names & module.__dict__.keys():
            value = module.__dict__[name]
            self._watch.item(module.__dict__, name, value)
            if isinstance(value, ModuleType):
                self._read_module(value, names, within | {id(module)})
            elif not _is_library(module.__name__):
                self._variable(value, names)

    def _read_class(self, kind: type, names: set[str]) -> None:
        """Those `names` that are read of a class, or of an object of it."""
        if _is_library(kind.__module__) and kind is not torch.Tensor:
            return
        for name in names:
            if hasattr(kind, name):
                of_class = getattr(kind, name)
                self._watch.class_item(kind, name, of_class)
                self._read(of_class.fget if isinstance(of_class, property) else of_class, kind)


def _is_library(name: str) -> bool:
    return name.partition(".")[0] in _LIBRARIES


def _names_in_class(kind: type) -> frozenset[str]:
    """Names of attributes that the functions of a module's class read, `torch.nn.Module`'s own apart."""
    bases = kind.__mro__[: kind.__mro__.index(torch.nn.Module)]
    functions = [f for base in bases for f in vars(base).values() if isinstance(f, FunctionType)]
    return frozenset(name for f in functions for name in _attributes(f.__code__))


def _attributes(code: CodeType) -> Iterator[str]:
    """Names of attributes, and of global variables, that code and functions within it use; as text too, for
    `getattr`."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _attributes(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            yield constant
