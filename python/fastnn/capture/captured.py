"""A captured function: which of its programs serves a call, and how it comes by one."""

from __future__ import annotations

import functools
import gc
import inspect
import os
import sys
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from enum import Enum
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from fastnn import _dispatch
from fastnn._diagnostics import EagerStepWarning, levels_out
from fastnn._dispatch import Unsupported
from fastnn._torch_internals import BUFFERS, FORWARD_HOOKS, FORWARD_PRE_HOOKS, MODULES, PARAMETERS, version_of
from fastnn.capture import cuda_graph
from fastnn.capture.check import compare
from fastnn.capture.graph_program import GraphProgram
from fastnn.capture.ir import View
from fastnn.capture.islands import view_of
from fastnn.capture.program import Builder, Gradients, Program
from fastnn.capture.reach import reached
from fastnn.capture.recorder import Recorder, Step, Tape, parameters_of, replace, tensors_in
from fastnn.capture.signature import Signature, signature
from fastnn.capture.surroundings import Surroundings
from fastnn.capture.watch import watch_parts

# What a module has in dicts; hooks that come later are Python that the recording does not know.
_TABLES = (PARAMETERS, BUFFERS, MODULES, FORWARD_HOOKS, FORWARD_PRE_HOOKS)
# What a replay may return again as it was, beside tensors, in tuples, lists and dicts.
_RETURNED = (Tensor, type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, Enum)
_PROGRAMS = 8  # kept, the most recently used
_SIGNATURES = 64  # known, the most recently used; who calls with more of them gains nothing from programs
# A recording and its comparison take as long as some tens of eager calls. A program that was replayed less
# often before it made room for another was wasted, and a signature that wastes so many is given up.
_WORTH = 32  # replays
_MOST_WASTED = 2
# Recordings of one signature that another replaced before they were worth it, until it is given up: what the
# function reaches changes every time.
_MOST_REPLACED = 7
_LOST = (
    "it may read gradients that replays have not kept, and has found zeros: keep_grad=True keeps them, as is "
    "done from now on"
)


class Known:
    """What is known of the calls with one signature."""

    def __init__(self, family: Hashable) -> None:
        """Nothing yet."""
        self.family = family
        self.surveyed = False
        self.replaced = 0  # programs that another was recorded after before they were worth their recording
        self.wasted = 0  # programs that had to make room before they were worth their recording
        self.refused: str | None = None
        self.drew = False  # random numbers that torch does not know
        # Parameters whose .grad the function may set: what it does with it shows in a later call.
        self.leaves: dict[int, Tensor] = {}


class Captured:
    """What :func:`fastnn.capture` returns."""

    _by_name = True  # what the function reads by name is watched

    def __init__(self, fn: Callable[..., Any], *, native: bool, check: bool, keep_grad: bool) -> None:
        """See :func:`fastnn.capture`."""
        functools.update_wrapper(self, fn)
        self._fn = fn
        self._options = {"native": native, "check": check, "keep_grad": keep_grad}
        self._programs: list[Program | GraphProgram] = []
        self._known: OrderedDict[Hashable, Known] = OrderedDict()
        self._told: set[str] = set()
        self._lock = threading.Lock()

    @property
    def programs(self) -> tuple[Program | GraphProgram, ...]:
        """The recordings in use, the last used first."""
        return tuple(self._programs)

    def __repr__(self) -> str:
        """The function and how many programs it has."""
        return f"fastnn.capture({self._fn!r}), {len(self._programs)} programs"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """A method captured for one object: its programs are the object's own."""
        if instance is None:
            return self
        # The object has its programs, which lead back to it: only so does Python see that nobody else does.
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
        """By name, as functions are; what has another name is captured again, because programs are made of
        this process's memory."""
        found: Any = sys.modules.get(self.__module__)
        for part in getattr(self, "__qualname__", "").split("."):
            found = getattr(found, part, None)
        return self.__qualname__ if found is self else (_again, (self._fn, self._options))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, by a program where there is one for these arguments."""
        programs = self._programs
        for program in programs:
            if program.checked is None:
                continue
            result = program.native.run((args, kwargs))
            if result is NotImplemented:
                if program.native.running:  # by another thread: its memory is in use
                    return self._fn(*args, **kwargs)
            else:
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
        if _dispatch.torch_reason() is not None:  # disabled, compiling, under another recorder: no refusal
            return self._fn(*args, **kwargs)
        try:
            called = signature(args, kwargs)
            known = self._find(called)
        except Unsupported as reason:
            self._tell(str(reason))
            return self._fn(*args, **kwargs)
        if known.refused is not None:
            self._tell(known.refused)
            return self._fn(*args, **kwargs)
        for program in self._programs:
            if program.checked is None and program.key == called.key:
                begun = self._begin(program, known, args, kwargs)
                if begun is not None:
                    return begun[0]
        return self._record(called, known, args, kwargs)

    def _find(self, called: Signature) -> Known:
        """What is known of a signature; the first call with one too many runs as written."""
        known = self._known.get(called.key)
        if known is not None:
            self._known.move_to_end(called.key)
            return known
        known = self._known[called.key] = Known(called.family)
        if len(self._known) > _SIGNATURES:
            self._known.popitem(last=False)  # the least recently used
            raise Unsupported(
                f"it has been called with {_SIGNATURES} different signatures: give numbers that change as "
                "tensors, and batches in few sizes"
            )
        siblings = sum(other.family == known.family for other in self._known.values())
        if known.family is not None and siblings > _PROGRAMS:
            raise Unsupported(
                "an argument that requires a gradient is another tensor at every call: give it detached, or "
                "make it require gradients within"
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
        recorder = Recorder(called.tensors)
        names = None
        if self._by_name and known.surveyed:
            try:
                names = Surroundings(self._fn)
            except Exception as error:  # of somebody's class, which has something to say about its attributes
                recorder.refuse(f"what it reads by name cannot be looked at: {error}")
        try:
            with _dispatch.disabled(), recorder:
                result = self._fn(*args, **kwargs)
        finally:
            lost = any(
                recorder.has_met(grad) or (recorder.refused is not None and leaf.grad is grad)
                for leaf, grad in planted
            )
            for leaf, grad in planted:
                if leaf.grad is grad and version_of(grad) == 0:  # else the function has added its own to it
                    leaf.grad = None
        known.leaves = recorder.leaves
        news = [leaf for key, leaf in recorder.leaves.items() if key not in before and leaf.grad is not None]
        if recorder.refused is not None:
            known.refused = recorder.refused
        elif known.surveyed and not news:
            previous = next((program for program in self._programs if program.key == called.key), None)
            if previous is not None and previous.native.runs < _WORTH:
                known.replaced += 1
            try:
                if self._looked_around(names, known):
                    keep_grad, check = self._options["keep_grad"], self._options["check"]
                    around = reached(self._fn)
                    program = _assemble(
                        called, recorder, before, around, names, result, keep_grad=keep_grad, check=check
                    )
                    self._add(program)
            except Unsupported as reason:
                known.refused = str(reason)
            if known.replaced == _MOST_REPLACED:
                known.refused = "what it reads beside its arguments is another in each call"
        known.surveyed = True
        if lost:
            self._options["keep_grad"] = True
            self._programs = [program for program in self._programs if not program.dropped]
            self._tell(_LOST)
        if known.refused is not None:
            self._tell(known.refused)
        return result

    def _add(self, program: Program | GraphProgram) -> None:
        self._programs, gone = [program, *self._programs[: _PROGRAMS - 1]], self._programs[_PROGRAMS - 1 :]
        for other in gone:
            known = self._known.get(other.key)
            if known is not None and other.native.runs < _WORTH:
                known.wasted += 1
                if known.wasted == _MOST_WASTED:
                    known.refused = (
                        f"more than {_PROGRAMS} kinds of arguments take turns, and {_PROGRAMS} recordings "
                        "are kept: pad batches to few sizes"
                    )

    def _looked_around(self, names: Surroundings | None, known: Known) -> bool:
        """See what the call that was recorded has done beside its tensors; whether it can be replayed."""
        if names is None:
            return True
        generator = names.drawn()
        if generator is not None and known.drew:
            raise Unsupported(
                f"it draws from {generator}, which a replay would not: draw outside and give it the numbers, "
                "or draw by torch"
            )
        changed = sorted({*names.changed()} - self._told)
        self._told.update(changed)
        if changed:
            warnings.warn(
                f"fastnn.capture: {self._name()} changes {', '.join(changed)} as it runs, which replays do "
                "not: do that outside, and give it what it depends on as an argument.",
                stacklevel=levels_out(),
            )
        known.drew = generator is not None  # or another thread did: it is recorded once more
        return not known.drew

    def _gradients_before(
        self, known: Known
    ) -> tuple[dict[int, tuple[Tensor, Tensor | None]], list[tuple[Tensor, Tensor]]]:
        """The gradients that a call finds; where programs have not kept one, it shall find one to drop."""
        dropped = {id(param): param for program in self._programs for param in program.dropped}
        planted = []
        for leaf in dropped.values():
            if leaf.grad is None:
                leaf.grad = torch.zeros_like(leaf)
                planted.append((leaf, leaf.grad))
        return {key: (leaf, leaf.grad) for key, leaf in known.leaves.items()}, planted


class _Method(Captured):
    """The programs of a method for one object, which has it among its attributes."""

    def __init__(self, home: Captured, instance: Any) -> None:
        """`home` is the method of the class."""
        fn, reference = home._fn, weakref.ref(instance)

        @functools.wraps(fn)
        def method(*args: Any, **kwargs: Any) -> Any:
            return fn(reference(), *args, **kwargs)

        super().__init__(method, **home._options)
        self._home, self._instance = home, reference

    def is_of(self, home: Captured, instance: Any) -> bool:
        """Whether it is this method's and this object's: a copy has what it was copied from."""
        return self._home is home and self._instance() is instance

    def __reduce__(self) -> Any:
        """A copy of the object begins without."""
        return type(None), ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The object comes first."""
        if args[0] is not self._instance():  # a copy of a bound method is bound to a copy
            return self._home.__get__(args[0])(*args[1:], **kwargs)
        return super().__call__(*args[1:], **kwargs)


def _again(fn: Callable[..., Any], options: dict[str, bool]) -> Captured:
    return Captured(fn, **options)


def _assemble(
    called: Signature,
    recorder: Recorder,
    before: dict[int, tuple[Tensor, Tensor | None]],
    around: list[Any],
    names: Surroundings | None,
    result: Any,
    *,
    keep_grad: bool,
    check: bool,
) -> Program | GraphProgram:
    tape = recorder.tape
    gradients_before = [grad for _, grad in before.values() if grad is not None]
    if recorder.reaches_arguments([*(x for x in around if isinstance(x, Tensor)), *gradients_before]):
        raise Unsupported("an argument shares its memory with a tensor that it reaches otherwise too")
    fresh = set(map(id, tape.fresh))
    gradients = _gradients(recorder, before, fresh, keep_grad)
    returned = [recorder.view(t) for t in tensors_in(result)]
    for t in tensors_in(result):
        if t.grad_fn is not None or (t.requires_grad and id(recorder.view(t).storage) in fresh):
            raise Unsupported("it returns a tensor with an autograd graph: return loss.detach()")
    for part in _leaves_of(result):
        if not isinstance(part, _RETURNED):
            raise Unsupported(f"it returns a {type(part).__name__}")
    results = [view for view in returned if id(view.storage) in fresh]
    _refuse_survivors(recorder, [*results, *(view for _, view in gradients.kept)])
    watch = _watch(tape, around)
    if names is not None:
        names.watch(watch)
    device = recorder.device
    if any(t.device != device for t in called.tensors):
        raise Unsupported(f"an argument is not on {device}, where it works")
    if device is not None and cuda_graph.is_there(device):
        return GraphProgram(called, recorder, gradients, watch)
    programs = []
    for natively in (True, False) if check else (True,):
        builder = Builder(tape, called, gradients, results, watch, natively=natively)
        programs.append(builder.build(_maker(result, builder, recorder)))
    program, program.key = programs[0], called.key
    program.checked, program.reference = (None, programs[1].native) if check else (False, None)
    return program


def _leaves_of(x: Any) -> Iterator[Any]:
    if isinstance(x, (tuple, list)) or type(x) in (dict, OrderedDict):
        for part in x.values() if isinstance(x, dict) else x:
            yield from _leaves_of(part)
    else:
        yield x


def _watch(tape: Tape, around: list[Any]) -> Any:
    """Notices what changes in the modules that were called, and in those around: training or evaluation,
    other parameters."""
    watch = _dispatch.cpu.Watch()
    called = {id(m): m for root in tape.modules for m in root.modules()}
    nearby = {id(m): m for root in around if isinstance(root, nn.Module) for m in root.modules()}
    for key, module in {**called, **nearby}.items():
        try:
            watch_parts(watch, module, _TABLES)
        except Unsupported:
            if key in called:
                raise
            continue
        watch.type(module)
        watch.item(module.__dict__, "training", module.training)
    return watch


def _gradients(
    recorder: Recorder, before: dict[int, tuple[Tensor, Tensor | None]], fresh: set[int], keep_grad: bool
) -> Gradients:
    """What became of the gradients, which says what is to become of them.

    Those of parameters that an optimizer updates in the function are not kept if the function itself drops
    what the call before has left: nobody but the function was to read them.
    """
    found = Gradients()
    stepped = {
        id(param)
        for entry in recorder.tape.entries
        if isinstance(entry, Step)
        for param in parameters_of(entry.optimizer)
    }
    for key, leaf in recorder.leaves.items():
        old, new = before.get(key, (leaf, None))[1], leaf.grad
        old_storage = None if old is None else recorder.storage_of(old)
        if old is None:
            found.absent.append(leaf)
        elif old_storage is not None and new is not None and new is not old:
            found.lost.append(old_storage)  # it was read or written, and dropped
        elif old_storage is not None:
            found.state[id(old_storage)] = (leaf, old)
        if new is None and old is not None:
            found.cleared.append(leaf)
        if new is None or new is old:
            continue
        view = recorder.view(new)
        if id(view.storage) not in fresh:
            raise Unsupported("a gradient is memory that was there before")
        if new.requires_grad:
            raise Unsupported("a gradient has an autograd graph that outlives the call")
        if keep_grad or old is None or key not in stepped:
            found.kept.append((leaf, view))
        else:
            found.cleared.append(leaf)
            found.withheld.append(leaf)
    return found


def _refuse_survivors(recorder: Recorder, known: list[View]) -> None:
    """What the function made may live on in what it returns and in gradients, but nowhere else."""
    expected = {id(view.storage) for view in known}
    for leaf in recorder.leaves.values():
        if leaf.grad is not None and (storage := recorder.storage_of(leaf.grad)) is not None:
            expected.add(id(storage))

    def survives() -> bool:
        return any(id(storage) not in expected for storage, _ in recorder.survivors())

    if survives():
        gc.collect()  # in a cycle, perhaps
        if survives():
            raise Unsupported("a tensor that it makes is kept elsewhere than in what it returns: return it")


def _maker(result: Any, builder: Builder, recorder: Recorder) -> int | Callable[..., Any]:
    """What makes the function's result from the arguments' tensors and the outputs."""
    if isinstance(result, Tensor):
        view = recorder.view(result)
        if view.storage in builder.outputs and builder.is_whole(view):
            return builder.outputs.index(view.storage)
    makers = {id(t): _tensor_maker(t, builder, recorder) for t in tensors_in(result)}

    def make(inputs: list[Tensor], outputs: list[Tensor]) -> Any:
        return replace(result_shape, _Maker, lambda maker: maker.make(inputs, outputs))

    result_shape = replace(result, Tensor, lambda t: makers[id(t)])
    return make


class _Maker:
    def __init__(self, make: Callable[[list[Tensor], list[Tensor]], Tensor]) -> None:
        self.make = make


def _argument(index: int, inputs: list[Tensor], outputs: list[Tensor]) -> Tensor:
    return inputs[index]


def _tensor_maker(t: Tensor, builder: Builder, recorder: Recorder) -> _Maker:
    view = recorder.view(t)
    if view.storage in builder.outputs:
        number = builder.outputs.index(view.storage)
        if builder.is_whole(view):
            return _Maker(lambda inputs, outputs: outputs[number])
        return _Maker(lambda inputs, outputs: view_of(outputs[number], view))
    for index, given in enumerate(builder.signature.tensors):
        if given is t:
            return _Maker(functools.partial(_argument, index))
    if view.numel == 0:
        return _Maker(lambda inputs, outputs: torch.empty_strided(view.shape, view.strides, dtype=view.dtype))
    if id(view.storage) in builder.inputs:
        return _Maker(builder.place(view).tensor)
    return _Maker((lambda inputs, outputs: t) if view.storage.tensor is t else builder.place(view).tensor)
