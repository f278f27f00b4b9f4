"""A captured function: chooses the program for a call, or records one."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Set
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastnn import _dispatch
from fastnn._diagnostics import EagerStepWarning, counted, levels_out
from fastnn._dispatch import Unsupported
from fastnn._labels import labelled
from fastnn._torch_internals import version_of, without_compilation
from fastnn.capture.assemble import assemble
from fastnn.capture.check import compare
from fastnn.capture.graph_program import GraphProgram
from fastnn.capture.known import WORTH, Known
from fastnn.capture.program import Program
from fastnn.capture.reach import reached
from fastnn.capture.recorder import Recorder
from fastnn.capture.recording import Recording
from fastnn.capture.signature import Signature, signature
from fastnn.capture.surroundings import Surroundings
from fastnn.capture.watch import watched_backward

_PROGRAMS = 8  # kept, the most recently used
_SIGNATURES = 64  # known, the most recently used; programs do not pay off for more of them
_LOST = (
    "it may read gradients that replays did not keep, and found zeros instead: pass keep_grad=True, which is "
    "in effect from now on"
)
_LOST_BY = (
    "{} takes a step with gradients that replays did not keep, and found zeros instead: pass keep_grad=True, "
    "which is in effect from now on"
)
_DIFFERS = (
    "its recordings do not last, because of {}: pass that as an argument (a number as a tensor), or "
    "change tensors in place"
)
_UNSEEN = "the names that it reads cannot be inspected"
# Functions in which optimizers take steps: one may take a step with gradients that another left.
_training: weakref.WeakValueDictionary[int, Captured] = weakref.WeakValueDictionary()


class Captured:
    """What :func:`fastnn.capture` returns."""

    _differs = _DIFFERS  # why a function is given up whose recordings do not last

    def __init__(self, fn: Callable[..., Any], *, native: bool, check: bool, keep_grad: bool) -> None:
        """See :func:`fastnn.capture`."""
        functools.update_wrapper(self, fn)
        self._fn = fn
        self._options = {"native": native, "check": check, "keep_grad": keep_grad}
        self._programs: list[Program | GraphProgram] = []
        self._known: OrderedDict[Hashable, Known] = OrderedDict()
        self._told: set[str] = set()
        self._lock = threading.Lock()
        # The ids of parameters that its optimizers update; other threads read it.
        self._stepped: frozenset[int] = frozenset()

    @property
    def programs(self) -> tuple[Program | GraphProgram, ...]:
        """The recordings in use, the last used first."""
        return tuple(self._programs)

    def __repr__(self) -> str:
        """The function and how many programs it has."""
        return f"fastnn.capture({self._fn!r}), {counted(len(self._programs), 'program')}"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """A method captured for one object: each object has its own programs."""
        if instance is None:
            return self
        # The object owns its programs, which refer back to it: only so can the garbage collector free both.
        attributes, key = getattr(instance, "__dict__", {}), f"fastnn.capture {id(self)}"
        bound = attributes.get(key)
        if bound is None or not bound.is_of(self, instance):
            try:
                bound = _Method(self, instance)
                if isinstance(instance, type):
                    setattr(instance, key, bound)
                else:
                    instance.__dict__[key] = bound
            except (AttributeError, TypeError):
                self._tell(f"{type(instance).__name__} has slots instead of attributes")
                return MethodType(self._fn, instance)
        return MethodType(bound, instance)

    def __reduce__(self) -> Any:
        """By name, like functions; if that name does not lead here, the copy captures the function again,
        because programs are bound to this process's memory."""
        found: Any = sys.modules.get(self.__module__)
        for part in getattr(self, "__qualname__", "").split("."):
            found = getattr(found, part, None)
        return self.__qualname__ if found is self else (_again, (self._fn, self._options))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, by a program if there is one for these arguments."""
        programs = self._programs
        for program in programs:
            if program.checked is None:
                continue
            result = labelled(program.native.run, "program")((args, kwargs))
            if result is NotImplemented:
                if program.native.running:  # by another thread: its memory is in use
                    return self._fn(*args, **kwargs)
            else:
                for state, mode in program.modes:
                    state["training"] = mode
                if program is not programs[0]:
                    self._programs = [program, *(other for other in programs if other is not program)]
                return result
        if not self._lock.acquire(blocking=False):  # another thread is recording
            return self._fn(*args, **kwargs)
        try:
            return self._without_program(args, kwargs)
        finally:
            self._lock.release()

    def _without_program(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Disabled, compiling, under another recorder: no refusal.
        reason = _dispatch.torch_reason() or watched_backward()
        if reason is not None:
            if _dispatch.is_recording():
                _dispatch.decide("capture", reason)
            return self._fn(*args, **kwargs)
        try:
            called = signature(args, kwargs)
            known = self._find(called)
        except Unsupported as refusal:
            self._tell(str(refusal))
            return self._fn(*args, **kwargs)
        if known.refused is not None:
            if self._options["native"] or not known.is_outdated():
                self._tell(known.refused)
                return self._fn(*args, **kwargs)
            known = self._known[called.key] = known.another_try()
        for program in self._programs:
            if program.checked is None and program.key == called.key:
                begun = self._begin(program, known, args, kwargs)
                if begun is not None:
                    return begun[0]
        return self._record(called, known, args, kwargs)

    def _find(self, called: Signature) -> Known:
        """What is known of a signature; the call that exceeds their number runs as written."""
        known = self._known.get(called.key)
        if known is not None:
            self._known.move_to_end(called.key)
            return known
        known = self._known[called.key] = Known(called.family)
        if len(self._known) > _SIGNATURES:
            self._known.popitem(last=False)  # the least recently used
            raise Unsupported(
                f"it has been called with {_SIGNATURES} different signatures: pass numbers that change as "
                "tensors, and use few batch sizes"
            )
        siblings = sum(other.family == known.family for other in self._known.values())
        if known.family is not None and siblings > _PROGRAMS:
            raise Unsupported(
                "an argument that requires a gradient is a different tensor in every call: detach it, or "
                "make it require gradients inside the function"
            )
        return known

    def _name(self) -> str:
        code = getattr(inspect.unwrap(self._fn), "__code__", None)
        name = getattr(self._fn, "__qualname__", repr(self._fn))
        return (
            name if code is None else f"{name} ({os.path.basename(code.co_filename)}:{code.co_firstlineno})"
        )

    def _tell(self, reason: str) -> None:
        name = self._name()
        if self._options["native"]:
            raise RuntimeError(f"capture: {name} cannot be recorded: {reason}")
        if _dispatch.is_recording():
            _dispatch.decide("capture", reason)
        if reason not in self._told:
            self._told.add(reason)
            warnings.warn(
                f"fastnn.capture runs {name} eagerly: {reason}. native=True makes this an error; "
                "warnings.simplefilter('ignore', fastnn.EagerStepWarning) silences it.",
                EagerStepWarning,
                stacklevel=levels_out(),
            )

    def _begin(
        self, program: Program | GraphProgram, known: Known, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, str | None] | None:
        if isinstance(program, GraphProgram):
            begun = program.begin((args, kwargs), self._fn)
        else:
            leaves = list(known.leaves.values())
            begun = compare(program, (args, kwargs), leaves, lambda: self._fn(*args, **kwargs))
        if begun is not None and begun[1] is not None:
            self._programs = [other for other in self._programs if other is not program]
            known.refused = begun[1]
            self._tell(known.refused)
        return begun

    def _record(self, called: Signature, known: Known, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before, planted = self._gradients_before(known)
        around = reached(self._fn, called.others)
        nearby = (other for other in around if isinstance(other, Optimizer))
        recorder = Recorder(called.tensors, [*known.optimizers.values(), *nearby])
        names = self._names(called, known, around, recorder.recording)
        try:
            with _dispatch.recorded(), without_compilation(), recorder:
                result = self._fn(*args, **kwargs)
        finally:
            losing = self._take_back(planted, recorder)
        if recorder.steps.stepped:
            self._stepped |= recorder.steps.stepped
            _training[id(self)] = self
        new, is_as_known = known.learn(recorder, before)
        if is_as_known and not _dispatch.is_disabled():  # if it is, another thread is recording
            self._make_program(called, known, recorder, before, names, new, result)
        for owner in losing:
            owner._options["keep_grad"] = True
            owner._programs = [program for program in owner._programs if not program.dropped]
            owner._tell(_LOST if owner is self else _LOST_BY.format(self._name()))
        if known.refused is not None:
            self._tell(known.refused)
        return result

    def _names(
        self, called: Signature, known: Known, around: list[Any], recording: Recording
    ) -> Surroundings | None:
        """What the function finds by name, if that is watched."""
        if known.surveyed:
            try:
                return self._surroundings(called, around, list(known.called.values()))
            except Exception as error:  # raised by the attribute access of a user's class
                recording.refuse(f"{_UNSEEN}: {error}")
        return None

    def _surroundings(
        self, called: Signature, around: list[Any], modules: list[nn.Module | Optimizer]
    ) -> Surroundings:
        return Surroundings(self._fn, called.others, around, modules)

    def _take_back(
        self, planted: list[tuple[Tensor, Tensor | None, Captured]], recorder: Recorder
    ) -> set[Captured]:
        """Drop the gradients that `_gradients_before` added; returns the functions whose gradients were
        missing."""
        recording, stepped = recorder.recording, recorder.steps.stepped
        losing = {
            owner
            for leaf, grad, owner in planted
            if (owner is self or id(leaf) in stepped)
            and (
                grad is None
                or recording.has_met(grad)
                or (recording.refused is not None and leaf.grad is grad)
            )
        }
        for leaf, grad, _ in planted:
            # Otherwise the function has accumulated into it.
            if grad is not None and leaf.grad is grad and version_of(grad) == 0:
                leaf.grad = None
        return losing

    def _make_program(
        self,
        called: Signature,
        known: Known,
        recorder: Recorder,
        before: dict[int, tuple[Tensor, Tensor | None]],
        names: Surroundings | None,
        new: list[nn.Module | Optimizer],
        result: Any,
    ) -> None:
        """Make it of a recording, or note why that fails. `new` are those called for the first time."""
        previous = next((program for program in self._programs if program.key == called.key), None)
        if previous is not None and previous.native.runs < WORTH:
            known.replaced += 1
        try:
            if known.was_replaced_too_often():
                raise Unsupported(self._differs.format(known.what_differs()))
            changed = self._looked_around(names, known, new)
            if names is not None and changed is not None:
                leaves, check = recorder.recording.leaves, self._options["check"]
                kept = leaves.keys() if self._options["keep_grad"] else self._stepped_elsewhere()
                around = reached(self._fn, called.others)  # again: it may have stored its arguments
                program = assemble(called, recorder, before, around, names, result, kept=kept, check=check)
                program.modes = names.modes()
                known.names = names
                self._add(program)
                self._tell_changes(changed)
        except Unsupported as reason:
            known.refused = str(reason)
            self._programs = [p for p in self._programs if p.key != called.key or p.native.runs >= WORTH]

    def _add(self, program: Program | GraphProgram) -> None:
        others = self._programs
        if len(others) == _PROGRAMS:
            unused = [other for other in others if other.key == program.key and other.native.runs < WORTH]
            gone = (unused if len(unused) > 1 else others)[-1]  # two, for a signature that alternates
            others = [other for other in others if other is not gone]
            known = self._known.get(gone.key)
            if known is not None and gone.key != program.key and gone.native.runs < WORTH:
                known.wasted += 1
                if known.was_wasted_too_often():
                    known.refused = (
                        f"more than {_PROGRAMS} input signatures alternate, and {_PROGRAMS} recordings "
                        "are kept: pad batches to a few sizes"
                    )
        self._programs = [program, *others]

    def _looked_around(self, names: Surroundings | None, known: Known, new: list[Any]) -> list[str] | None:
        """The names that the recorded call has rebound; None if it is to be recorded again. `new` is what it
        has called that earlier calls have not."""
        if names is None:
            return []
        generator = names.drawn()
        if generator is not None and known.drew:
            raise Unsupported(
                f"it draws from {generator}, which a replay would not: draw outside and pass the numbers, "
                "or draw with torch"
            )
        changed = names.changed(but_modes=True)
        try:
            names.add(new)
        except Exception as error:
            raise Unsupported(f"{_UNSEEN}: {error}") from None
        known.drew = generator is not None  # perhaps in another thread: it is recorded again
        return None if known.drew else changed

    def _tell_changes(self, names: list[str]) -> None:
        untold = sorted({*names} - self._told)
        self._told.update(untold)
        if untold:
            warnings.warn(
                f"fastnn.capture: {self._name()} changes {', '.join(untold)} while it runs, which replays do "
                "not: do that outside, and pass what it depends on as an argument.",
                stacklevel=levels_out(),
            )

    def _stepped_elsewhere(self) -> Set[int]:
        """The ids of parameters that another captured function updates."""
        return frozenset().union(*(other._stepped for other in self._others_training()))

    def _others_training(self) -> list[Captured]:
        found = (reference() for reference in _training.valuerefs())  # a copy: threads may add to it
        return [other for other in found if other is not None and other is not self]

    def _gradients_before(
        self, known: Known
    ) -> tuple[dict[int, tuple[Tensor, Tensor | None]], list[tuple[Tensor, Tensor | None, Captured]]]:
        """The gradients before a call; where a program has not kept one, a zero gradient is put in its place,
        so that it shows whether the call reads it.

        The same for gradients that programs of other functions have not kept, if this function takes a step
        with them; adding to others is harmless. None stands for one that another thread may be using, which
        is left alone.
        """
        planted: list[tuple[Tensor, Tensor | None, Captured]] = []
        for owner in [self, *self._others_training()]:
            for program in owner._programs:
                elsewhere = owner is not self and program.native.thread != threading.get_ident()
                for leaf in program.dropped:
                    if owner is not self and known.surveyed and id(leaf) not in self._stepped:
                        continue
                    if elsewhere:
                        planted.append((leaf, None, owner))
                    elif leaf.grad is None:
                        with torch.inference_mode(False):  # inference tensors have no version
                            leaf.grad = torch.zeros_like(leaf)
                        planted.append((leaf, leaf.grad, owner))
        return {key: (leaf, leaf.grad) for key, leaf in known.leaves.items()}, planted


class _Method(Captured):
    """The programs of a method for one object, stored among its attributes."""

    def __init__(self, home: Captured, instance: Any) -> None:
        """`home` is the method of the class."""
        fn, reference = home._fn, weakref.ref(instance)

        @functools.wraps(fn)
        def method(*args: Any, **kwargs: Any) -> Any:
            return fn(reference(), *args, **kwargs)

        super().__init__(method, **home._options)
        self._home, self._instance = home, reference

    def is_of(self, home: Captured, instance: Any) -> bool:
        """Whether it belongs to this method and object: a copied object still has the original's."""
        return self._home is home and self._instance() is instance

    def __reduce__(self) -> Any:
        """A copy of the object starts without programs."""
        return type(None), ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The object comes first."""
        if args[0] is not self._instance():  # a copy of a bound method is bound to a copy
            return self._home.__get__(args[0])(*args[1:], **kwargs)
        return super().__call__(*args[1:], **kwargs)


def _again(fn: Callable[..., Any], options: dict[str, bool]) -> Captured:
    return Captured(fn, **options)
