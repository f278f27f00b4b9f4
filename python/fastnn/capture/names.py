"""What code reads by name, found by reading it: variables, attributes, and what it calls."""

from __future__ import annotations

import contextlib
import dis
import sys
import weakref
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from inspect import getattr_static
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import torch

from fastnn import _replaced
from fastnn.capture.reach import global_names, wrapped

_LIBRARIES = {"torch", "fastnn", "numpy", *sys.stdlib_module_names}
# Python's own classes whose objects are made to hold the attributes of others' code.
_NAMESPACES = (SimpleNamespace, Namespace)
_LONGEST = 64  # entries of a container that is looked into
_OF_WHAT_IS_THERE = {"LOAD_ATTR", "LOAD_METHOD"}
_OF_A_BASE = {"LOAD_SUPER_ATTR", "LOAD_SUPER_METHOD"}
_BY_TEXT = {
    "getattr",
    "hasattr",
    "setattr",
    "vars",
    "attrgetter",
    "methodcaller",
    "__dict__",
    "__getattribute__",
}


def is_plain(value: Any) -> bool:
    """Whether it is an object with attributes of its own and no more."""
    others = (torch.nn.Module, torch.Tensor, torch.optim.Optimizer, FunctionType, MethodType, partial, type)
    return isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, (*others, ModuleType))


def entries(container: Any) -> dict[Any, Any]:
    """What a list, tuple or dict holds, by index or key; nothing of a long one, which is data."""
    if len(container) > _LONGEST:
        return {}
    return dict(dict.items(container) if isinstance(container, dict) else enumerate(container))


def has_attributes(value: Any) -> bool:
    """Whether it is plain, and its attributes are not a library's business."""
    return is_plain(value) and (isinstance(value, _NAMESPACES) or not is_library(type(value).__module__))


class Code:
    """What code reads by name: global variables, those of enclosing functions, and, of functions that are
    called so, what their code reads.

    Attributes:
        names: of attributes that the code reads, whatever of.
        direct: those among them that it reads of something else than an attribute: of what a variable holds,
            for one. ``self.optimizer.step`` says nothing of a ``self.step``.
        modules: those that are called, by their ids, and their parts.
        objects: others that it finds under the names of variables, or in containers there.
        of_modules: ids of those among them that are attributes of modules of Python.
        libraries: names of the modules of Python among them.
    """

    def __init__(self, watch: Any) -> None:
        self.names: set[str] = set()
        self.direct: set[str] = set()
        self.modules: dict[int, torch.nn.Module] = {}
        self.objects: dict[int, Any] = {}
        self.of_modules: set[int] = set()
        self.libraries: set[str] = set()
        self._watch = watch
        self._seen: set[tuple[int, type | None]] = set()

    def found(self, value: Any) -> None:
        """Follow what is called, or is under the name of a variable."""
        if isinstance(value, torch.nn.Module):
            for module in value.modules():
                if id(module) not in self.modules:
                    self.modules[id(module)] = module
                    self._read(forward_of(type(module)), type(module))
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
        elif isinstance(value, weakref.ref):
            self.found(value())
        elif isinstance(wrapped(value), FunctionType):
            self._read(wrapped(value), None)
        elif isinstance(value, (dict, list, tuple)):
            if id(value) not in self.objects:
                self.objects[id(value)] = value
                for part in entries(value).values():
                    self.found(part)
        elif is_plain(value):
            self.objects[id(value)] = value
            self._read(getattr_static(type(value), "__call__", None), type(value))

    def follow_methods(self) -> None:
        """Read what objects have under the names of attributes that the code reads."""
        known = -1
        while known != len(self._seen):
            known = len(self._seen)
            for module in list(self.modules.values()):
                self._read_class(type(module), set(self.names))
            for value in list(self.objects.values()):
                self._read_class(type(value), set(self.read_of(value)))

    def read_of(self, value: Any) -> set[str]:
        """Names of attributes that the code may read of one of `objects`."""
        return self.names if id(value) in self.of_modules else self.direct

    def _read(self, function: Any, owner: type | None) -> None:
        """Watch what `function` reads; `owner` is the class whose attributes it reads of itself.

        Of torch's and fastnn's functions only the names are watched, for somebody may replace what they
        stand for; what they lead to is not followed.
        """
        if not isinstance(function, FunctionType):
            function = wrapped(function)  # in another captured function, for one
        if not isinstance(function, FunctionType) or (id(function), owner) in self._seen:
            return
        self._seen.add((id(function), owner))
        follow = not _replaced.is_own(function)
        names = set(_attributes(function.__code__))
        if follow:
            self.names |= names
            self.direct |= set(_attributes(function.__code__, direct=True))
            for cell in function.__closure__ or ():
                with contextlib.suppress(ValueError):  # nothing is assigned yet
                    self._watch.attribute(cell, "cell_contents", cell.cell_contents)
                    self._variable(cell.cell_contents, names)
            for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
                self.found(default)
            self._read_class(torch.Tensor, names)
        for name in global_names(function.__code__):
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
        self.libraries.add(module.__name__)
        for name in names & module.__dict__.keys():
            value = module.__dict__[name]
            self._watch.item(module.__dict__, name, value)
            if isinstance(value, ModuleType):
                self._read_module(value, names, within | {id(module)})
            elif not is_library(module.__name__):
                self.of_modules.add(id(value))
                self._variable(value, names)

    def _read_class(self, kind: type, names: set[str]) -> None:
        """Those `names` that are read of a class, or of an object of it."""
        if is_library(kind.__module__) and kind is not torch.Tensor:
            return
        for name in names:
            with contextlib.suppress(Exception):  # of a metaclass, which has something to say about names
                of_class = getattr(kind, name)
                if getattr(kind, name) is not of_class:  # a class method, bound anew whenever it is asked for
                    self._read(getattr(of_class, "__func__", None), kind)
                    continue
                self._watch.class_item(kind, name, of_class)
                self._read(of_class.fget if isinstance(of_class, property) else of_class, kind)


def is_library(name: str) -> bool:
    """Whether a module of that name is torch's, fastnn's or Python's own."""
    return name.partition(".")[0] in _LIBRARIES


def forward_of(kind: type) -> Any:
    """What a class of modules has for its forward; of those that are scripted it is no function."""
    return getattr_static(kind, "forward", None)


def names_in_class(kind: type) -> frozenset[str]:
    """Names of attributes that the functions of a module's class read, `torch.nn.Module`'s own apart."""
    bases = kind.__mro__[: kind.__mro__.index(torch.nn.Module)]
    functions = [f for base in bases for f in vars(base).values() if isinstance(f, FunctionType)]
    return frozenset(name for f in functions for name in _attributes(f.__code__))


def _attributes(code: CodeType, *, direct: bool = False) -> Iterator[str]:
    """Names of attributes, and of global variables, that code and functions within it use; as text too, where
    it may be for `getattr`. `direct`: none that are read of attributes only."""
    yield from _direct(code) if direct else code.co_names
    by_text = not _BY_TEXT.isdisjoint(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _attributes(constant, direct=direct)
        elif by_text and isinstance(constant, str) and constant.isidentifier():
            yield constant


def _direct(code: CodeType) -> Iterator[str]:
    of_attribute = False
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if name == "EXTENDED_ARG":
            continue
        reads = name in _OF_WHAT_IS_THERE
        # Where jumps end, something else may have been found.
        if name in _OF_A_BASE or (reads and (instruction.is_jump_target or not of_attribute)):
            yield instruction.argval
        of_attribute = reads
