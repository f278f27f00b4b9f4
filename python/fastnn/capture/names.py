"""What code reads by name, found by reading it: variables, attributes, and what it calls."""

from __future__ import annotations

import contextlib
import dis
import sys
import threading
import weakref
from argparse import Namespace
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from functools import partial
from inspect import getattr_static
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from fastnn import _replaced
from fastnn._torch_internals import LEAF_HOOKS, MODULE_CALL, MODULE_HOOKS, PARAMETERS
from fastnn.capture.reach import global_names, wrapped

# Modules of torch with nothing but functions of its own, unless somebody has replaced one.
_ALL_OWN = (torch, torch.nn.functional, torch.autograd)
_LIBRARIES = {"torch", "fastnn", "numpy", "_pytest", *sys.stdlib_module_names}
# Library classes whose objects hold attributes for user code to read.
_NAMESPACES = (SimpleNamespace, Namespace, threading.local, LRScheduler)
LONGEST = 256  # entries of a container that is looked into
_DEEPEST = 4  # attributes of attributes, and entries of entries
# Methods for making, copying and printing an object: nothing else calls them implicitly.
_MAKING = {"__new__", "__init__", "__post_init__"}  # methods that give a new object its attributes
NOT_OF_USE = {
    *("__new__", "__init__", "__post_init__", "__del__", "__repr__", "__str__", "__copy__", "__deepcopy__"),
    *("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__init_subclass__", "__set_name__"),
}
_OF_WHAT_IS_THERE = {"LOAD_ATTR", "LOAD_METHOD"}
_OF_A_BASE = {"LOAD_SUPER_ATTR", "LOAD_SUPER_METHOD"}
# The methods of a Function that autograd calls.
_OF_FUNCTIONS = {"forward", "setup_context", "backward", "jvp", "vmap"}
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
    """Whether it is an object with attributes of its own and nothing else."""
    others = (torch.nn.Module, torch.Tensor, torch.optim.Optimizer, FunctionType, MethodType, partial, type)
    return isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, (*others, ModuleType))


def of_class(kind: type, name: str) -> Any:
    """What a class or the first of its bases defines under a name, as a Watch finds it: getattr would bind a
    class method again. None if there is none."""
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


def slots_of(value: Any) -> dict[str, Any]:
    """What an object has in the slots of its classes, except those of libraries."""
    found = {}
    for base in type(value).__mro__:
        slots = () if is_library(base.__module__) else vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            with contextlib.suppress(AttributeError):  # not assigned yet
                found[name] = getattr(value, name)
    return found


def parts_of(container: Any) -> Iterable[tuple[Any, Any]]:
    """What a list, tuple or dict holds, with its indices or keys."""
    return dict.items(container) if isinstance(container, dict) else enumerate(container)


def entries(container: Any) -> dict[Any, Any]:
    """What a list, tuple or dict holds, by index or key; empty for a long one, which is data."""
    return {} if len(container) > LONGEST else dict(parts_of(container))


def has_attributes(value: Any) -> bool:
    """Whether it is plain, or a function, and its attributes are not internals of a library."""
    if isinstance(value, FunctionType) or wrapped(value) is not None or slots_of(value):
        return True
    return is_plain(value) and (isinstance(value, _NAMESPACES) or not is_library(type(value).__module__))


class Code:
    """What code reads by name: global variables, those of enclosing functions, and what the functions that it
    calls by name read.

    Attributes:
        names: of attributes that the code reads, from any object.
        direct: those among them that are not read from an attribute but, for example, from a variable:
            ``self.optimizer.step`` does not read ``self.step``.
        modules: the modules that are called, with their submodules, by id.
        objects: other objects that it finds in variables and attributes, or in containers there.
        libraries: names of the Python modules among them.
        asked: names that it passes to `getattr` or `hasattr`, whether there is such an attribute or not.
    """

    def __init__(self, watch: Any) -> None:
        self.names: set[str] = set()
        self.direct: set[str] = set()
        self.modules: dict[int, torch.nn.Module] = {}
        self.objects: dict[int, Any] = {}
        self.libraries: set[str] = set()
        self.asked: set[str] = set()
        self._watch = watch
        self._texts: set[str] = set()  # strings that may be passed to `getattr`
        self._begins: set[str] = set()  # prefixes of names that code composes for `getattr`
        # By id of an object, how many attributes and entries lead to it from a variable.
        self._depth: dict[int, int] = {}
        self._entered: set[int] = set()  # modules whose forward has been read
        self._seen: set[int] = set()  # functions that have been read
        self._of_classes: set[tuple[type, str]] = set()  # that have been read

    def found(self, value: Any, depth: int = 0) -> None:
        """Follow what is called, or held by a variable or, at a `depth` of 1, by an attribute."""
        if isinstance(value, torch.nn.Module):
            for module in value.modules():
                self.modules[id(module)] = module
                if depth or id(module) in self._entered:  # an attribute may be used for its other methods
                    continue
                self._entered.add(id(module))
                self._read(forward_of(type(module)))
                for name in MODULE_CALL:  # replaced in torch's class, perhaps
                    call = of_class(type(module), name)
                    if not _replaced.is_own(call):
                        self._read(call)
                for attribute in list(module.__dict__.values()):
                    if isinstance(attribute, (FunctionType, MethodType, partial)):
                        self.found(attribute)
                for hooks in MODULE_HOOKS:
                    self.found(module.__dict__.get(hooks))
                for parameter in module.__dict__.get(PARAMETERS, {}).values():  # a traced one has none
                    self.found(parameter)
        elif isinstance(value, torch.Tensor):
            for hooks in LEAF_HOOKS:
                self.found(getattr(value, hooks, None))
        elif isinstance(value, type):
            if not is_library(value.__module__):
                self._is_new(value, depth)
        elif isinstance(value, partial):
            for part in (value.func, *value.args, value.keywords):
                self.found(part, depth)
        elif isinstance(value, MethodType):
            self.found(value.__self__, depth)
            self._read(value.__func__)
        elif isinstance(value, weakref.ref):
            self.found(value(), depth)
        elif isinstance(value, weakref.ProxyTypes):
            with contextlib.suppress(ReferenceError):  # it is gone
                self.found(value.__init__.__self__, depth)
        elif isinstance(value, str):
            self._texts.add(value)
        elif isinstance(value, (dict, list, tuple)):
            if self._is_new(value, depth):
                for part in entries(value).values():
                    self.found(part, depth)
        elif isinstance(value, (deque, set, frozenset)):
            if self._is_new(value, depth) and len(value) <= LONGEST:
                for part in value:
                    self.found(part, depth)
        elif isinstance(value, FunctionType) or isinstance(wrapped(value), FunctionType):
            self._read(value)
            if value.__dict__:
                self._is_new(value, depth)
        elif (is_plain(value) and depth == 0) or has_attributes(value):
            self._is_new(value, depth)

    def _is_new(self, value: Any, depth: int) -> bool:
        if id(value) in self.objects or depth > _DEEPEST:
            return False
        self.objects[id(value)] = value
        self._depth[id(value)] = depth
        return True

    def follow_methods(self) -> None:
        """Read what objects have under the attribute names that the code reads, and the methods that Python
        calls implicitly."""
        growing: list[Sized] = [self._seen, self._texts, self.names, self.modules, self.objects]
        known = -1
        while known != (known := sum(map(len, growing))):
            if not _BY_TEXT.isdisjoint(self.names):
                self._add_texts()
            for module in list(self.modules.values()):
                self._follow(module, set(self.names), 0)
            for value in list(self.objects.values()):
                self._follow(value, set(self.read_of(value)), self._depth[id(value)])

    def _add_texts(self) -> None:
        begins, found = tuple(self._begins), set(self._texts)
        for value in (*self.modules.values(), *self.objects.values()):
            found.update(name for name in getattr(value, "__dict__", ()) if name.startswith(begins))
        self.names |= found
        self.direct |= found

    def _follow(self, value: Any, names: set[str], depth: int) -> None:
        kind = value if isinstance(value, type) else type(value)
        unnamed = _unnamed_in(kind) - ({"__len__"} - {f"__{name}__" for name in self.names})
        if isinstance(value, type):  # the code may instantiate it
            unnamed |= {*_MAKING, "forward"}
        self._read_class(kind, names | unnamed)
        if isinstance(value, torch.nn.Module) or has_attributes(value):
            attributes = {**slots_of(value), **getattr(value, "__dict__", {})}
            for name in names & attributes.keys():
                self.found(attributes[name], depth + 1)

    def read_of(self, value: Any) -> set[str]:
        """Names of attributes that the code may read from one of `objects`."""
        return self.names if self._depth[id(value)] else self.direct

    def _read(self, function: Any, *, of_library: bool = False) -> None:
        """Watch what `function` reads.

        Of torch's and fastnn's functions only the names are watched, because what they refer to may be
        replaced; what they lead to is not followed.
        """
        if not isinstance(function, FunctionType):
            function = wrapped(function)  # e.g. in another captured function
        if not isinstance(function, FunctionType) or id(function) in self._seen:
            return
        self._seen.add(id(function))
        follow = not _replaced.is_own(function)
        names = set(_attributes(function.__code__))
        if follow:
            self._watch.function(function)
            direct = set(_attributes(function.__code__, direct=True))
            if function.__name__ in _MAKING:  # its names do not apply to other objects
                stored = {
                    i.argval for i in dis.get_instructions(function.__code__) if i.opname == "STORE_ATTR"
                }
                names, direct = names - stored, direct - stored
            self.names |= names
            self.direct |= direct
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
                with contextlib.suppress(ValueError):  # not assigned yet
                    self._watch.attribute(cell, "cell_contents", cell.cell_contents)
                    if name == "__class__":  # for `super()`, which makes no object
                        self._read_class(cell.cell_contents, names)
                    else:
                        self._variable(cell.cell_contents, names)
            for defaults in (function.__defaults__, function.__kwdefaults__):
                self.found(defaults)
            self._begins |= set(_begins_in(function.__code__))
            self.asked |= set(_asked_in(function.__code__))
            self._texts |= set(_texts_in(function.__code__))
            for name in _imported(function.__code__):
                if isinstance(sys.modules.get(name), ModuleType):
                    self._read_module(sys.modules[name], names, set())
            if "autocast" in names:
                self._watch.attribute(_AUTOCAST, "dtype", _AUTOCAST.dtype)
            self._read_class(torch.Tensor, names)
        for name in global_names(function.__code__):
            if name in function.__globals__:
                value = function.__globals__[name]
                self._watch.item(function.__globals__, name, value)
                if isinstance(value, ModuleType):
                    if value in _ALL_OWN or not of_library:
                        self._read_module(value, names, set(), follow=not of_library)
                elif follow:
                    self._variable(value, names)
            elif follow:  # one of Python's, or missing
                self._watch.absent(function.__globals__, name)

    def _variable(self, value: Any, names: set[str], depth: int = 0) -> None:
        if isinstance(value, ModuleType):
            self._read_module(value, names, set())
        elif isinstance(value, type):
            self._read_class(value, names)
        self.found(value, depth)

    def _read_module(
        self, module: ModuleType, names: set[str], within: set[int], *, follow: bool = True
    ) -> None:
        """Those `names` that may be read from a Python module, or from one in it.

        `follow`: also what torch's functions among them read, as those of torch.nn.functional call others by
        name; but no further, since all of torch could be reached that way.
        """
        if id(module) in within:
            return
        self.libraries.add(module.__name__)
        for name in names & module.__dict__.keys():
            value = module.__dict__[name]
            self._watch.item(module.__dict__, name, value)
            if isinstance(value, ModuleType):
                if follow:
                    self._read_module(value, names, within | {id(module)})
            elif _replaced.is_own(value):
                if follow:
                    self._read(value, of_library=True)
            elif not is_library(module.__name__) or module in _ALL_OWN:
                self._variable(value, names, depth=1)

    def _read_class(self, kind: type, names: set[str]) -> None:
        """Those `names` that are read from a class, or from an instance of it."""
        if is_library(kind.__module__) and kind is not torch.Tensor:
            return
        if issubclass(kind, torch.autograd.Function):
            names = names | _OF_FUNCTIONS
        for name in names:
            if (kind, name) in self._of_classes:
                continue
            self._of_classes.add((kind, name))
            found = of_class(kind, name)
            if found is not None:
                self._watch.class_item(kind, name, found)
                self._read_descriptor(found)
            for base in kind.__mro__[1:]:  # because its own may call `super()`
                if name in vars(base):
                    self._read_class(base, {name})
            with contextlib.suppress(Exception):  # raised by a metaclass
                asked = getattr(kind, name)
                if isinstance(asked, FunctionType):
                    self._read(asked)
                else:
                    self._variable(asked, names, depth=1)

    def _read_descriptor(self, value: Any) -> None:
        """Read what a descriptor runs when its attribute is accessed."""
        if isinstance(value, property):
            self._read(value.fget)
        elif hasattr(type(value), "__get__") and not isinstance(value, FunctionType):
            self.found(value, 1)
            if is_library(type(value).__module__):  # functools's, which call the user's function
                for part in getattr(value, "__dict__", {}).values():
                    self.found(part, 1)


class _Autocast:
    """The dtype that torch.autocast uses by default."""

    @property
    def dtype(self) -> torch.dtype:
        """On the CPU."""
        return torch.get_autocast_dtype("cpu")


_AUTOCAST = _Autocast()


def is_library(name: str) -> bool:
    """Whether a module of that name is torch's, fastnn's or Python's own."""
    return name.partition(".")[0] in _LIBRARIES


def _unnamed_in(kind: type) -> set[str]:
    """Names of the methods of a user's class that Python calls implicitly, as for an operator."""
    found: set[str] = set()
    for base in kind.__mro__:
        if not is_library(base.__module__):
            found.update(name for name, value in vars(base).items() if _is_unnamed(name, value))
    return found - NOT_OF_USE


def _is_unnamed(name: str, value: Any) -> bool:
    # Methods made by dataclasses compare all fields, which says nothing about what the function reads.
    if not name.startswith("__") or not isinstance(value, FunctionType):
        return False
    return value.__code__.co_filename != "<string>"


def forward_of(kind: type) -> Any:
    """The forward of a module class; for scripted ones it is not a function."""
    return getattr_static(kind, "forward", None)


def names_in_class(kind: type) -> frozenset[str]:
    """Names of attributes that the functions of a module's class read, except those of `torch.nn.Module`
    itself."""
    bases = kind.__mro__[: kind.__mro__.index(torch.nn.Module)]
    functions = [f for base in bases for f in vars(base).values() if isinstance(f, FunctionType)]
    return frozenset(name for f in functions for name in _attributes(f.__code__))


def _attributes(code: CodeType, *, direct: bool = False) -> Iterator[str]:
    """Names of attributes, and of global variables, that code and functions within it use, including strings,
    which may be for `getattr`. `direct`: without those that are only read from attributes."""
    yield from _direct(code) if direct else code.co_names
    by_text = not _BY_TEXT.isdisjoint(code.co_names) or "param_groups" in code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _attributes(constant, direct=direct)
        elif by_text and isinstance(constant, str):
            yield from constant.split(".")


def _begins_in(code: CodeType) -> Iterator[str]:
    """Prefixes of attribute names that code composes, as in ``getattr(self, f"net{i}")``."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _begins_in(constant)
        elif isinstance(constant, str) and constant.isidentifier() and not _BY_TEXT.isdisjoint(code.co_names):
            yield from (constant for each in dis.get_instructions(code) if each.opname == "BUILD_STRING")


def _asked_in(code: CodeType) -> Iterator[str]:
    """Strings in code that calls `getattr`, which may be names for it."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _asked_in(constant)
    if not _BY_TEXT.isdisjoint(code.co_names):
        yield from _texts_in(code)


def _texts_in(code: CodeType) -> Iterator[str]:
    """Strings in code that may be names, which it may pass to what calls `getattr`."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _texts_in(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            yield constant


def _imported(code: CodeType) -> Iterator[str]:
    """The modules that code imports when it runs."""
    for each in dis.get_instructions(code):
        if each.opname == "IMPORT_NAME":
            yield each.argval


def _direct(code: CodeType) -> Iterator[str]:
    of_attribute = False
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if name == "EXTENDED_ARG":
            continue
        reads = name in _OF_WHAT_IS_THERE
        # After a jump, the object may be a different one.
        if name in _OF_A_BASE or (reads and (instruction.is_jump_target or not of_attribute)):
            yield instruction.argval
        of_attribute = reads
