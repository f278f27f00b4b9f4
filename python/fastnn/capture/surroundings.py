"""What a function finds by name: models, optimizers, tensors and numbers other than its arguments."""

from __future__ import annotations

import itertools
import random
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from functools import cache, partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastnn import _replaced
from fastnn._torch_internals import MODULE_CALL
from fastnn.capture.names import (
    LONGEST,
    NOT_OF_USE,
    Code,
    entries,
    forward_of,
    has_attributes,
    is_library,
    names_in_class,
    of_class,
    parts_of,
    slots_of,
)

# Generators of random numbers other than torch's, by the module that code names.
_GENERATORS: dict[str, tuple[str, Callable[[], Any]]] = {
    "random": ("Python's random", random.getstate),
    "numpy": ("numpy.random", lambda: np.random.get_state(legacy=False)),
}
# Objects that draw random numbers. A SystemRandom has no state: it is always taken to have drawn.
_never_the_same = itertools.count()
_DRAWING: dict[type, tuple[str, Callable[[Any], Any]]] = {
    random.SystemRandom: ("a random.SystemRandom", lambda generator: next(_never_the_same)),
    random.Random: ("a random.Random", lambda generator: generator.getstate()),
    np.random.Generator: ("a numpy.random.Generator", lambda generator: generator.bit_generator.state),
    np.random.RandomState: (
        "a numpy.random.RandomState",
        lambda generator: generator.get_state(legacy=False),
    ),
}
# Entries of containers that are watched, besides objects with attributes; others are data, which are added
# and removed.
_SETTINGS = (
    *(int, float, complex, str, bytes, type(None), np.generic, torch.dtype, torch.device, Enum, type),
    *(nn.Module, Optimizer, FunctionType, BuiltinFunctionType, MethodType, partial, list, dict),
)
# Called without being named; a Watch checks all of a class at once.
_OPERATORS = [
    name
    for name in dir(Tensor)
    if name.startswith("__") and name not in NOT_OF_USE and callable(getattr(Tensor, name))
]
_OF_MODULES = {"forward", *MODULE_CALL, "__getattr__", "__iter__", "__len__", "__getitem__", "__contains__"}
_DATA = (Tensor, np.ndarray)  # watched only if the function reads them
_MOST_DATA = 10_000  # entries of a container that is searched for data
_DEEPEST = 4  # attributes of attributes, and entries of entries


class Surroundings:
    """Variables and attributes that a function's code reads, and their values before it runs.

    Entries of lists and dicts among them are handled the same way, if they are few: models, optimizers,
    functions, numbers and text, and tensors that the function reads. Containers that the function itself
    grows or shrinks are left alone, for they are logs and buffers.
    """

    def __init__(
        self, fn: Any, given: list[Any], around: list[Any], called: list[nn.Module | Optimizer]
    ) -> None:
        """`given` is what the arguments hold besides tensors, `around` all that the function can reach;
        `called` are the modules and optimizers called in an earlier call."""
        self._noted: dict[tuple[str, int, Any], tuple[Any, Any, Any]] = {}  # holder, name and value
        self._names: dict[int, str] = {}  # of objects, of their attributes and of variables, by their ids
        self._weak: set[int] = set()  # ids of objects that must not be kept alive from here
        self._containers: dict[int, tuple[Any, int, bool]] = {}  # with size, and whether that is watched
        self._draws: dict[int, tuple[str, Callable[[], Any], str]] = {}
        self._classes: set[tuple[type, frozenset[str]]] = set()  # already noted
        self._of_modules: set[int] = set()  # the ids of the attributes of modules
        self._asked: set[str] = set()  # names of attributes that there need not be
        optimizers = [other for other in (*called, *around) if isinstance(other, Optimizer)]
        # Numbers that an optimizer draws in its step are also drawn in replays.
        self._not_ours = {id(part) for optimizer in optimizers for part in vars(optimizer).values()}
        for name in _OPERATORS:
            self.class_item(Tensor, name, of_class(Tensor, name))
        code = Code(self)
        if isinstance(fn, MethodType):
            self._names[id(fn.__self__)] = "self"
        for root in (fn, *given):
            code.found(root)
        code.follow_methods()
        named = {name: kept for name, kept in _GENERATORS.items() if name in code.libraries}
        # The first that has drawn is reported: the module itself, not its hidden generator object.
        self._draws = {
            id(state): (name, state, repr(state())) for name, state in named.values()
        } | self._draws
        for other in around:
            for part in (other, *getattr(other, "__dict__", {}).values()):
                self._note_generator(part)
        nearby = {id(m): m for root in around if isinstance(root, nn.Module) for m in root.modules()}
        self._note_all(code, (code.modules | nearby).values())
        for optimizer in optimizers:
            self._note_options(optimizer, code.names)
        self.add([*called, *optimizers])

    def add(self, called: Iterable[nn.Module | Optimizer]) -> None:
        """Also note these, which the function calls, and what their code reads."""
        code = Code(self)  # separate: names that a model's code reads do not apply to other objects
        for each in called:
            if isinstance(each, Optimizer):
                self._note_attributes(each, {"step", "zero_grad"})
                for owner, name in _replaced.parts_of_step(_replaced.torchs_class(type(each))):
                    if isinstance(owner, type):
                        self.class_item(owner, name, of_class(owner, name))
                    else:
                        self.item(vars(owner), name, vars(owner)[name])
            else:
                code.found(each)
        code.follow_methods()
        self._note_all(code, code.modules.values())

    def _note_options(self, optimizer: Optimizer, names: set[str]) -> None:
        """Options that the function's code reads: those that a step reads are also read in replays."""
        read = names if "param_groups" in names else set()
        if "get_last_lr" in names:  # of a scheduler, which has set it in the optimizer
            read = read | {"lr"}
        for group in optimizer.param_groups:
            for name in read & group.keys() - {"params"}:
                self.item(group, name, group[name])
        if "defaults" in names:
            list(self._note_entries(optimizer.defaults))

    def item(self, holder: dict[str, Any], name: str, value: Any) -> None:
        """As in a Watch: a global variable."""
        self._note("item", holder, name, value)

    def attribute(self, holder: Any, name: str, value: Any) -> None:
        """As in a Watch: a variable of an enclosing function."""
        self._note("attribute", holder, name, value)

    def absent(self, holder: dict[str, Any], name: str) -> None:
        """As in a Watch: a global variable, or an attribute, that there is not."""
        self._note("absent", holder, name, None)

    def function(self, function: FunctionType) -> None:
        """As in a Watch: the code and defaults of a function."""
        self._note("function", function, "a function", _made_of(function))
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            self._names.setdefault(id(cell), name)

    def class_item(self, kind: type, name: str, value: Any) -> None:
        """As in a Watch: what an object gets from its class."""
        self._note("class_item", kind, name, value)

    def _note(self, method: str, holder: Any, name: Any, value: Any) -> None:
        if name == "__annotations__":  # which a class gets when they are first read
            return
        self._noted.setdefault((method, id(holder), name), (holder, name, value))
        self._note_generator(value)
        shown = self._shown(method, holder, name)
        if isinstance(value, weakref.ref):  # the object of a bound method
            self._names.setdefault(id(value()), "self")
            self._weak.add(id(value()))
        self._names.setdefault(id(value), shown)
        if method != "entry" and isinstance(value, _Held.kinds) and _Held.size(value) <= LONGEST:
            held = _Held(value)
            self._names[id(held)] = f"what is in {shown}"
            self._noted.setdefault(("held", id(value), "now"), (held, "now", held.now))

    def _shown(self, method: str, holder: Any, name: Any) -> str:
        """Its name as it appears in the code."""
        found = self._names.get(id(holder))
        if method == "entry":
            return f"{found or 'a container'}[{name!r}]"
        if method == "function":
            return f"the code of {holder.__qualname__}"
        if method == "class_item":
            return f"{holder.__name__}.{name}"
        if method == "held" or name == "cell_contents":
            return found or "a variable"
        return f"{found}.{name}" if found else name

    def _note_generator(self, value: Any) -> None:
        """A generator of random numbers, or a method of one."""
        if isinstance(value, (BuiltinFunctionType, MethodType)):
            value = value.__self__
        for kind, (name, state) in _DRAWING.items():
            if isinstance(value, kind) and id(value) not in self._draws.keys() | self._not_ours:
                look = partial(state, value)
                self._draws[id(value)] = (name, look, repr(look()))

    def _note_all(self, code: Code, modules: Iterable[nn.Module]) -> None:
        """What code reads from modules and objects that it finds, and from what they hold."""
        found: list[Any] = []
        self._asked |= code.asked
        in_class = cache(names_in_class)
        for module in modules:
            kind: type = type(module)
            own = in_class(kind) if _replaced.is_own(forward_of(kind)) else frozenset()
            found += self._note_attributes(module, code.names | own | {"training"})
            self._of_modules.add(id(module.__dict__))
            if "forward" not in module.__dict__:
                self.absent(module.__dict__, "forward")
        for other in code.objects.values():
            found += self._note_parts(other, code.read_of(other))
        seen: set[int] = set()
        for _ in range(_DEEPEST):
            new = {id(part): part for part in found if id(part) not in seen}
            seen |= new.keys()
            found = [part for each in new.values() for part in self._note_parts(each, code.names)]

    def _note_parts(self, of: Any, names: set[str]) -> Iterable[Any]:
        if isinstance(of, (list, dict, tuple)):
            return self._note_entries(of)
        return self._note_attributes(of, names) if has_attributes(of) else ()

    def _note_entries(self, container: Any) -> Iterable[Any]:
        parts, size = entries(container), _size(container)
        # Options of an optimizer are read at each step.
        if not isinstance(container, tuple) and size <= _MOST_DATA and "params" not in parts:
            for key, value in parts_of(container):
                if _data_in(value) or (key in parts and _is_setting(value)):
                    self._note("entry", container, key, value)
            is_watched = len(parts) == size and all(map(_is_setting, parts.values()))
            self._containers[id(container)] = (container, size, is_watched)
        return parts.values()

    def _note_attributes(self, of: Any, names: set[str]) -> Iterable[Any]:
        own, slots = getattr(of, "__dict__", {}), slots_of(of)
        self._names.setdefault(id(own), self._names.setdefault(id(of), type(of).__name__))
        for name in names & own.keys():
            self.item(own, name, own[name])
        for name in names & slots.keys():
            self.attribute(of, name, slots[name])
        if not slots:
            kind = type(of)
            # It may get its own later, or its class.
            is_users = not is_library(kind.__module__)
            known = names if is_users else names & (self._asked | _names_of(_bases(of, libraries=False)))
            for name in known - own.keys():
                self.absent(own, name)
                if is_users and of_class(kind, name) is None:
                    self._note("class_absent", kind, name, None)
        self._note_class(of, frozenset(names))
        if id(of) not in self._weak:
            self._note("type", of, "__class__", type(of))
        return [values[name] for values in (own, slots) for name in names & values.keys()]

    def _note_class(self, of: Any, names: frozenset[str]) -> None:
        if (type(of), names) in self._classes:  # as for most modules of a model
            return
        self._classes.add((type(of), names))
        is_module = isinstance(of, nn.Module)
        if is_module:
            names |= _OF_MODULES
        for base in _bases(of, libraries=is_module or isinstance(of, Optimizer)):
            for name in names & _names_of(base.__mro__):
                self.class_item(base, name, of_class(base, name))
        if is_module and is_library(type(of).__module__):
            for name in names - _names_of(type(of).__mro__):  # a property would take precedence
                self._note("class_absent", type(of), name, None)

    def drawn(self) -> str | None:
        """The generator from which the function has drawn numbers that a replay would not draw, or None."""
        for name, state, before in self._draws.values():
            if repr(state()) != before:
                return name
        return None

    def modes(self) -> list[tuple[dict[str, Any], bool]]:
        """The attributes of modules whose training mode has changed, with the mode."""
        return [
            (holder, holder["training"])
            for (_, key, name), (holder, _, mode) in self._noted.items()
            if name == "training" and key in self._of_modules and holder.get(name, mode) is not mode
        ]

    def changed(self, *, but_modes: bool = False) -> list[str]:
        """Names that are now bound to something else; they are no longer watched.

        `but_modes`: except for the training mode of modules.
        """
        left = {id(holder) for holder, _ in self.modes()} if but_modes else set()
        names = []
        for key, (container, size, _) in list(self._containers.items()):
            if _size(container) != size:
                del self._containers[key]
                names.append(f"the length of {self._names.get(key, 'a container')}")
        for (method, key, name), (holder, _, value) in list(self._noted.items()):
            if name == "training" and key in left:
                continue
            if method == "entry" and key not in self._containers:
                same = None
            elif isinstance(holder, list):
                same = name < len(holder) and _is_same(holder[name], value)
            elif method in ("item", "entry"):
                same = name in holder and _is_same(holder[name], value)
            elif method == "absent":
                same = name not in holder
            elif method == "class_absent":
                same = of_class(holder, name) is None
            elif method == "type":
                same = type(holder) is value
            elif method == "class_item":
                same = _is_same(of_class(holder, name), value)
            elif method == "function":
                same = _is_same(_made_of(holder), value)
            else:
                same = _is_same(getattr(holder, name, None), value)
            if not same:
                del self._noted[method, key, name]
            if same is False:
                names.append(self._shown(method, holder, name))
        return names

    def watch(self, watch: Any, read: Iterable[Tensor]) -> None:
        """Add them to a Watch; of tensors and arrays in containers only those that the function reads. The
        others are no longer known."""
        tensors = {id(t): t.data_ptr() for t in read}
        addresses = set(tensors.values())
        for key, (holder, name, value) in list(self._noted.items()):
            method = key[0]
            if method in ("absent", "class_absent"):
                getattr(watch, method)(holder, name)
            elif method in ("function", "type"):
                getattr(watch, method)(holder)
            elif (method == "held" and holder.is_read(addresses)) or (
                method == "entry"
                and (data := _data_in(value))
                and not any(
                    _holds_one_of(each, addresses) if isinstance(each, np.ndarray) else id(each) in tensors
                    for each in data
                )
            ):
                del self._noted[key]
            elif method == "held":
                watch.attribute(holder, name, value)
            elif method != "entry":
                getattr(watch, method)(holder, name, value)
            else:
                (watch.item if isinstance(holder, dict) else watch.element)(holder, name, value)
        for container, size, is_watched in self._containers.values():
            if is_watched:
                watch.size(container, size)

    def differing(self) -> list[str]:
        """What has changed since `watch` was called."""
        sizes = [c for c, size, is_watched in self._containers.values() if is_watched and _size(c) != size]
        return [f"the length of {self._names.get(id(c), 'a container')}" for c in sizes] + self.changed()


class _Held:
    """The content of an array, or of a container that cannot be indexed."""

    kinds = (np.ndarray, array, bytearray, deque, set)

    def __init__(self, holder: Any) -> None:
        self._holder = holder

    @staticmethod
    def size(holder: Any) -> int:
        """How large that content is."""
        return holder.size if isinstance(holder, np.ndarray) else len(holder)

    @property
    def now(self) -> Any:
        """All of it, in the form that a Watch compares."""
        if isinstance(self._holder, (np.ndarray, array)):
            return self._holder.tobytes()
        return bytes(self._holder) if isinstance(self._holder, bytearray) else tuple(self._holder)

    def is_read(self, addresses: set[int]) -> bool:
        """Whether it shares its memory with a tensor, so that each call reads it."""
        return isinstance(self._holder, np.ndarray) and _holds_one_of(self._holder, addresses)


def _data_in(entry: Any) -> list[Any]:
    return [each for each in (entry if isinstance(entry, tuple) else (entry,)) if isinstance(each, _DATA)]


def _holds_one_of(numbers: np.ndarray[Any, Any], addresses: set[int]) -> bool:
    first = numbers.__array_interface__["data"][0]
    spans = [(n - 1) * stride for n, stride in zip(numbers.shape, numbers.strides, strict=True)]
    low = first + sum(span for span in spans if span < 0)
    high = first + sum(span for span in spans if span > 0) + numbers.itemsize
    return any(low <= address < high for address in addresses)


def _made_of(function: FunctionType) -> tuple[Any, ...]:
    return function.__code__, function.__defaults__, function.__kwdefaults__


def _size(container: Any) -> int:
    return dict.__len__(container) if isinstance(container, dict) else len(container)


def _is_setting(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_setting, value))
    return isinstance(value, _SETTINGS) or has_attributes(value)


def _bases(of: Any, *, libraries: bool) -> list[type]:
    return [b for b in type(of).__mro__ if b is not object and (libraries or not is_library(b.__module__))]


def _names_of(bases: Iterable[type]) -> set[str]:
    return set().union(*map(vars, bases))


def _is_same(value: Any, other: Any) -> bool:
    """As in a Watch: numbers, text and tuples of them by value, others by identity."""
    if value is other or type(value) is not type(other):
        return value is other
    if type(value) is tuple:
        return len(value) == len(other) and all(map(_is_same, value, other))
    return type(value) in (int, float, str, bytes) and repr(value) == repr(other)
