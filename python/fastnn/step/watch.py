"""What the next step of any model hangs on, watched: where that changes, the step is recorded anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

from fastnn import _replaced, _torch_internals
from fastnn._dispatch import Unsupported
from fastnn.capture.reach import global_names
from fastnn.capture.watch import watch_globals, watch_hooks, watch_optimizer

_TABLES = ("_parameters", "_buffers", "_modules")
_LARGEST = 256  # entries of a container that is watched: a vocabulary stays what it is
_CALL = ("__call__", "_call_impl", "_wrapped_call_impl", "forward", "zero_grad", "parameters")


def watch_step(watch: Any, model: torch.nn.Module, loss: Any, optimizer: torch.optim.Optimizer) -> None:
    """Everything that a recording of the step takes as it finds it.

    That is the modules' classes, attributes, parts and hooks, the hooks of parameters, the optimizer's, and
    what the code of forwards and losses that are not torch's reads by name. Not watched is what lies deeper:
    in an attribute of an attribute, or in what another library's code reads.

    Raises:
        Unsupported: there is a hook, or something else that a replay would pass by.
    """
    watch_globals(watch)
    for names in (_replaced.classes, _replaced.losses, _replaced.functions):
        names.add_to(watch)
    roots = [model, loss] if isinstance(loss, torch.nn.Module) else [model]
    modules = {id(m): m for root in roots for m in root.modules()}
    code = _Code(watch)
    for module in modules.values():
        code.read(type(module).forward, type(module))
    if not isinstance(loss, torch.nn.Module):
        code.read(loss, None)
    for module in modules.values():
        _watch_module(watch, module, code.names)
    for found in code.objects:
        _watch_inside(watch, found, code.names)
    params = {id(p): p for m in modules.values() for p in m.parameters(recurse=False)}
    params |= {id(p): p for group in optimizer.param_groups for p in group["params"]}
    for p in params.values():
        if _torch_internals.on_leaf(p):
            raise Unsupported("a parameter has a hook")
        watch.unhooked(p, _torch_internals.on_accumulator)
    watch_optimizer(watch, optimizer)


def _watch_module(watch: Any, module: torch.nn.Module, names: set[str]) -> None:
    kind, state = type(module), module.__dict__
    watch.type(module)
    watch_hooks(watch, module)
    if state.get("_compiled_call_impl") is not None or "_orig_mod" in state["_modules"]:
        raise Unsupported(f"{kind.__name__} is compiled")
    for name in _CALL:
        watch.class_item(kind, name, getattr(kind, name))
    for table in _TABLES:
        if not isinstance(state[table], dict):
            raise Unsupported(f"{kind.__name__} keeps its parts where they are not watched")
        watch.content(state[table])
    if _replaced.is_own(kind.forward):
        watch.content(state)
    else:
        _watch_named(watch, state, names | {"training", "forward"})
    for key, value in state.items():
        if key in names:
            _watch_inside(watch, value, names)


def _watch_named(watch: Any, table: dict[str, Any], names: set[str]) -> None:
    """Attributes with these names: others, such as a counter of steps, may change."""
    for name in names:
        if name in table:
            watch.item(table, name, table[name])
        else:
            watch.absent(table, name)


def _watch_inside(watch: Any, value: Any, names: set[str]) -> None:
    """What a container holds, if not too much, or a plain object has as attributes of these names."""
    if isinstance(value, (dict, list)) and len(value) > _LARGEST:
        return
    if isinstance(value, dict):
        watch.content(value)
    elif isinstance(value, list):
        watch.elements(value)
    elif isinstance(table := getattr(value, "__dict__", None), dict) and not isinstance(
        value, (torch.nn.Module, torch.Tensor, torch.optim.Optimizer, FunctionType, MethodType)
    ):
        _watch_named(watch, table, names)


class _Code:
    """What code reads by name: global variables, those of enclosing functions, and, of functions that are
    called so, what their code reads.

    Attributes:
        names: of attributes that the code reads, whatever of.
        objects: what it finds under the names of variables.
    """

    def __init__(self, watch: Any) -> None:
        self.names: set[str] = set()
        self.objects: list[Any] = []
        self._watch = watch
        self._seen: set[int] = set()

    def read(self, function: Any, owner: type | None) -> None:
        """Watch what `function` reads; `owner` is the class whose attributes it reads of itself.

        Of torch's and fastnn's functions only the names are watched, for somebody may replace what they
        stand for; what is behind them is not followed.
        """
        if isinstance(function, MethodType):
            owner, function = type(function.__self__), function.__func__
        if not isinstance(function, FunctionType) or id(function) in self._seen:
            return
        self._seen.add(id(function))
        follow = not _replaced.is_own(function)
        names = set(_attributes(function.__code__))
        if follow:
            self.names |= names
            for cell in function.__closure__ or ():
                with contextlib.suppress(ValueError):  # nothing is assigned yet
                    self._found(cell.cell_contents, names)
                    self._watch.attribute(cell, "cell_contents", cell.cell_contents)
        for name in set(global_names(function.__code__)):
            if name in function.__globals__:
                value = function.__globals__[name]
                self._watch.item(function.__globals__, name, value)
                if follow or isinstance(value, ModuleType):
                    self._found(value, names)
        for name in names:
            for kind in {owner, torch.Tensor} if follow else ():
                if kind is not None and hasattr(kind, name):
                    of_class = getattr(kind, name)
                    self._watch.class_item(kind, name, of_class)
                    self.read(of_class.fget if isinstance(of_class, property) else of_class, kind)

    def _found(self, value: Any, names: set[str]) -> None:
        """Follow a value; of a module of Python those `names` that are read of it, perhaps."""
        if isinstance(value, ModuleType):
            if id(value) not in self._seen:
                self._seen.add(id(value))
                for name in names:
                    if name in value.__dict__:
                        self._watch.item(value.__dict__, name, value.__dict__[name])
                        if isinstance(value.__dict__[name], ModuleType) or not _is_library(value):
                            self._found(value.__dict__[name], names)
                self._seen.discard(id(value))
        elif isinstance(value, (FunctionType, MethodType)):
            self.read(value, None)
        elif not isinstance(value, type):
            self.objects.append(value)


def _is_library(module: ModuleType) -> bool:
    return module.__name__.partition(".")[0] in ("torch", "fastnn")


def _attributes(code: CodeType) -> Iterator[str]:
    """Names of attributes, and of global variables, that code and functions within it use; as text too, for
    `getattr`."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _attributes(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            yield constant
