"""Sees every op of torch's that a function runs, backward included, and notes it with its memory."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from types import CellType, FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.overrides import TorchFunctionMode

from fastnn._dispatch import Unsupported
from fastnn._replaced import HOMES, is_own
from fastnn._torch_internals import (
    TensorBase,
    TorchDispatchMode,
    is_composite,
    within_backward,
)
from fastnn.capture.ir import Storage, View
from fastnn.capture.options import Options
from fastnn.capture.schedules import SchedulerHook
from fastnn.capture.tape import Op, Schema, Step, Tape, as_view, parameters_of, replace, schema_of, tensors_in

_PLAIN = (Tensor, torch.nn.Parameter)
# These change a tensor's memory rather than its values.
_MOVES_MEMORY = {"resize_.default", "resize_as_.default", "set_.source_Tensor", "set_.source_Storage"}
# Of which only boolean indices depend on values.
_INDEXING = {"index.Tensor", "index_put.default", "index_put_.default", "_index_put_impl_.default"}


def _refuse_collective(schema: Schema) -> None:
    if schema.namespace.startswith(("c10d", "_c10d")):
        raise Unsupported(f"the collective {schema.name}")


@cache
def _is_composite(op: Any) -> bool:
    return is_composite(op)


class _Within:
    """The ops of an op, under the mode that it has come to."""

    def __init__(self, mode: TorchDispatchMode) -> None:
        self._mode = mode

    def __enter__(self) -> None:
        TorchDispatchMode.__enter__(self._mode)

    def __exit__(self, *error: object) -> None:
        TorchDispatchMode.__exit__(self._mode, *error)


# What these give or take, the recording would not see.
_UNSEEN: dict[Any, str] = {
    Tensor.tolist: "tolist",
    Tensor.numpy: "numpy",
    Tensor.__array__: "numpy",
    Tensor.data.__set__: "data =",  # type: ignore[attr-defined]
}


_GRADIENT: Any = Tensor.grad.__get__  # type: ignore[union-attr]
# Where distributions read values to validate what they are given.
_VALIDATING = {
    f"torch.distributions.{name}"
    for name in ("distribution", "constraints", "geometric", "continuous_bernoulli")
}


def _wrapped_by(func: FunctionType, caller: FrameType) -> Any:
    """What torch has begun to run, where somebody has put a function around it: torch tells a mode what its
    name stands for, and that, called again, would do twice what it does beside."""
    if caller.f_code.co_filename != torch.overrides.__file__:  # a method in C++, which has no frame
        names = [name for name, value in vars(Tensor).items() if value is func]
        return getattr(TensorBase, names[0], func) if names else func
    running = caller.f_back
    if running is None or running.f_code is func.__code__:  # a function of another library, for modes to see
        return func
    code, given = running.f_code, running.f_locals
    positional, parameters = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
    original = FunctionType(
        code,
        running.f_globals,
        code.co_name,
        tuple(given[name] for name in code.co_varnames[:positional]),  # torch does not tell all of them
        tuple(CellType(given[name]) for name in code.co_freevars),
    )
    original.__kwdefaults__ = {name: given[name] for name in code.co_varnames[positional:parameters]}
    return original


class _Unseen(TorchFunctionMode):
    """Beside a recorder, what goes past torch's ops ends the recording."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, FunctionType) and not is_own(func):
            func = _wrapped_by(func, sys._getframe(1))
        if func in _UNSEEN and not self._recorder.paused:
            self._recorder.refuse(f"values go past torch's ops: .{_UNSEEN[func]}")
        if func == _GRADIENT and not self._recorder.paused:
            self._recorder.gradient_is_asked(args[0])
        if func is Tensor.__bool__ and sys._getframe(1).f_globals.get("__name__") in _VALIDATING:
            with self._recorder.pause():
                return func(*args)
        return func(*args, **(kwargs or {}))


class Recorder(TorchDispatchMode):
    """While it is entered, ops of the calling thread run as ever and are noted.

    What a recording cannot hold ends it; ``refused`` says why, and the function runs on.
    """

    def __init__(self, inputs: list[Tensor], optimizers: Iterable[Optimizer] = ()) -> None:
        """`inputs` are the tensors among the arguments; `optimizers` those that the function may use."""
        super().__init__()
        self.refused: str | None = None
        self.device: torch.device | None = None  # of all tensors, known when the first is met
        self.tape = Tape()
        self.options = Options(optimizers)
        self.optimizers: dict[int, Optimizer] = {}  # that took steps, by id
        self.stepped: set[int] = set()  # the ids of their parameters, and of steps after a refusal
        self.leaves: dict[int, Tensor] = {}  # that require gradients, by id
        self.ran_backward = False  # in which hooks of leaves are called
        # By address. Torch's storages are kept, so that no address is used again; tensors are not, because
        # autograd copies a gradient that somebody else has a reference to.
        self._storages: dict[int, tuple[Storage, torch.UntypedStorage]] = {}
        self._met: set[int] = set()  # addresses, before the recording was refused
        self._made: list[tuple[Storage, weakref.ref[Tensor]]] = []
        # The tensors through which ops met the memory of arguments.
        self._inputs: set[int] = set()  # by id of the Storage
        self._in_inputs: list[weakref.ref[Tensor]] = []
        self.paused = 0  # how often: what runs meanwhile is not noted
        self._thread = threading.get_ident()
        self._hooks: list[Any] = []
        self._unseen = _Unseen(self)
        for tensor in inputs:
            self.device = self.device or tensor.device
            storage = self.storage_of(tensor)
            self.tape.inputs.append(
                self._first_view(tensor, None) if storage is None else as_view(tensor, storage)
            )
        self._given = {id(tensor) for tensor in inputs}
        self._inputs.update(id(view.storage) for view in self.tape.inputs)

    def __enter__(self) -> Any:
        """Begin."""
        self._hooks = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
            torch.nn.modules.module.register_module_forward_pre_hook(self._module_called),
            SchedulerHook(self._scheduler_stepped),
        ]
        self._unseen.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """End."""
        super().__exit__(*error)
        self._unseen.__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an op and note it."""
        kwargs = kwargs or {}
        if self.refused is not None:
            return func(*args, **kwargs)
        self.ran_backward = self.ran_backward or within_backward()
        try:
            schema = schema_of(func)
            if self.paused:
                _refuse_collective(schema)  # what else an optimizer's step does, a replay does too
                return func(*args, **kwargs)
            if schema.namespace == "profiler":
                return func(*args, **kwargs)
            if torch.is_inference_mode_enabled() and _is_composite(func):  # elsewhere autograd decomposes it
                with _Within(self):
                    return func.decompose(*args, **kwargs)
            self._check(schema, args, kwargs)
            if schema.name == "lift_fresh.default":
                return self._constant(func(*args))
            noted_args = tuple(replace(a, Tensor, self.view) for a in args)
            noted_kwargs = {key: replace(a, Tensor, self.view) for key, a in kwargs.items()}
        except Unsupported as reason:
            self.refuse(str(reason))
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        try:
            for t in tensors_in(result):
                self._check_plain(t)
            before = len(self.tape.fresh)
            noted = replace(result, Tensor, self._result)
            fresh = tuple(self.tape.fresh[before:])
            if fresh or schema.writes or schema.random:  # else the results are views: no work
                self.tape.entries.append(Op(func, schema, noted_args, noted_kwargs, noted, fresh))
        except Unsupported as reason:
            self.refuse(str(reason))
        return result

    def _constant(self, tensor: Tensor) -> Tensor:
        """A tensor of Python's numbers is made anew in each call, from a copy that stays."""
        if self.storage_of(tensor) is None:
            made, copy_ = self._result(tensor), torch.ops.aten.copy_.default
            source = self._first_view(kept := tensor.clone(), kept)
            self.tape.entries.append(Op(copy_, schema_of(copy_), (made, source), {}, made, ()))
        return tensor

    def refuse(self, reason: str) -> None:
        """End the recording, for what the function does."""
        if self.refused is None:
            self.refused = f"{reason}{_place()}"
            self._met.update(self._storages)
        self._storages.clear()

    def _check(self, schema: Schema, args: Any, kwargs: Any) -> None:
        _refuse_collective(schema)
        if schema.name in _MOVES_MEMORY:
            raise Unsupported(f"{schema.name} changes the memory of a tensor")
        if schema.depends_on_values and schema.name not in _INDEXING:
            if schema.name == "_local_scalar_dense.default":
                raise Unsupported(
                    "a value is read, by .item() or by Python's control flow on a tensor: return the tensor "
                    "and read it outside, or choose by torch.where"
                )
            raise Unsupported(f"the result of {schema.name} depends on values")
        if schema.name in _INDEXING:
            for t in tensors_in(args[1]):
                if t.dtype in (torch.bool, torch.uint8):
                    raise Unsupported(
                        "an index with a mask, whose result depends on values: choose by torch.where"
                    )
        for t in tensors_in((args, kwargs)):
            self._check_plain(t)

    def _check_plain(self, t: Tensor) -> None:
        if type(t) not in _PLAIN:
            raise Unsupported(f"{type(t).__name__} is a tensor subclass")
        if not _has_memory(t):
            raise Unsupported(f"a tensor on {t.device}, of layout {t.layout}")
        if self.device is None:
            self.device = t.device
        if t.device != self.device:
            raise Unsupported(f"a tensor on {t.device} beside others on {self.device}")
        if t.is_neg() or t.is_conj():
            raise Unsupported("a lazily negated or conjugated view")

    def view(self, tensor: Tensor) -> View:
        """The View of a tensor that an op is given."""
        storage = self.storage_of(tensor)
        view = self._first_view(tensor, tensor) if storage is None else as_view(tensor, storage)
        # Autograd makes another tensor of a leaf that it saved: it is not the one that has the gradient.
        if tensor.requires_grad and tensor.is_leaf and view.storage.tensor is tensor:
            self.leaves[id(tensor)] = tensor
        if id(view.storage) in self._inputs and id(tensor) not in self._given:
            self._in_inputs.append(weakref.ref(tensor))
        return view

    def gradient_is_asked(self, tensor: Tensor) -> None:
        """Somebody reads ``.grad``: of a tensor from before, it may be another one in each call."""
        if type(tensor) in _PLAIN and _has_memory(tensor) and tensor.requires_grad and tensor.is_leaf:
            storage = self.storage_of(tensor)
            if storage is None or storage.tensor is tensor:
                self.leaves[id(tensor)] = tensor

    def reaches_arguments(self, others: Iterable[Tensor]) -> bool:
        """Whether the memory of an argument was met otherwise too, as a parameter's is beside its ``.data``;
        once the function has returned. `others` are tensors that it may have taken from elsewhere."""
        made = {id(reference()) for _, reference in self._made}
        met = (reference() for reference in self._in_inputs)
        return any(t is not None and id(t) not in made for t in met) or any(
            id(self.storage_of(t)) in self._inputs for t in others if type(t) in _PLAIN and _has_memory(t)
        )

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What runs meanwhile is not noted."""
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1

    def _result(self, tensor: Tensor) -> View:
        storage = self.storage_of(tensor)
        if storage is None:
            view = self._first_view(tensor, None)
            self.tape.fresh.append(view.storage)
        else:
            view = as_view(tensor, storage)
        self._made.append((view.storage, weakref.ref(tensor)))
        return view

    def _first_view(self, tensor: Tensor, external: Tensor | None) -> View:
        """The View of a tensor in memory that has not been met before."""
        base = tensor.untyped_storage()
        storage = Storage(base.nbytes(), external)
        if external is not None:
            self.tape.externals.append(storage)
        if base.nbytes():
            self._storages[base.data_ptr()] = (storage, base)
        return as_view(tensor, storage)

    def storage_of(self, tensor: Tensor) -> Storage | None:
        """The memory of a tensor, where it has been met."""
        found = self._storages.get(tensor.untyped_storage().data_ptr())
        return None if found is None else found[0]

    def has_met(self, tensor: Tensor) -> bool:
        """Whether an op was given the memory of a tensor from before, so long as the recording went on."""
        address = tensor.untyped_storage().data_ptr()
        return address in self._storages or address in self._met

    def _here(self) -> bool:
        return threading.get_ident() == self._thread and self.refused is None

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        self.stepped.update(map(id, parameters_of(optimizer)))
        if self.refused is not None:
            return
        if self.paused == 0:
            if args[1:] or kwargs:
                self.refuse(f"{type(optimizer).__name__}.step is given a closure")
                return
            self.optimizers[id(optimizer)] = optimizer
            try:
                if (reason := self.options.changed()) is not None:
                    raise Unsupported(reason)
                self._note_step(optimizer)
            except Unsupported as reason:
                self.refuse(str(reason))
                return
        elif isinstance(outer := self.tape.entries[-1], Step) and outer.optimizer is not optimizer:
            # Which keeps its state where a comparison would not put it back.
            names = (type(each).__name__ for each in (outer.optimizer, optimizer))
            self.refuse("{}.step takes a step of another optimizer, {}".format(*names))
            return
        self.paused += 1

    def _note_step(self, optimizer: Optimizer) -> None:
        step = optimizer.__dict__.get("step", type(optimizer).step)
        if not getattr(getattr(step, "__code__", None), "co_filename", "").startswith(HOMES):
            # It began before torch told of the step: what it does is recorded, and a replay would repeat it.
            raise Unsupported(f"somebody has put a function around {type(optimizer).__name__}.step")
        gradients, parameters = [], []
        for group in optimizer.param_groups:
            for param in group["params"]:
                self._check(_STEP, (param, param.grad), {})
                self.leaves[id(param)] = param
                if param.grad is not None:
                    gradients.append((param, self.view(param.grad)))
                    parameters.append(self.view(param))
        self.tape.entries.append(Step(optimizer, gradients, parameters))

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if threading.get_ident() == self._thread and self.paused:
            self.paused -= 1
            self.options.note(optimizer)

    def _module_called(self, module: torch.nn.Module, args: Any) -> None:
        if not self._here():
            return
        if isinstance(module, (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)):
            self.refuse(f"{type(module).__name__} works on other devices or in other processes")
        self.tape.modules.append(module)

    def _scheduler_stepped(self, scheduler: LRScheduler) -> None:
        if self._here():
            self.refuse(f"it calls {type(scheduler).__name__}.step(), which a replay would not do")
        elif threading.get_ident() != self._thread and hasattr(scheduler, "optimizer"):
            self.options.note(scheduler.optimizer)  # it is not the function that has changed them

    def survivors(self) -> list[Tensor]:
        """What the function made and somebody still holds, once the function has returned."""
        fresh = set(map(id, self.tape.fresh))
        made = ((storage, reference()) for storage, reference in self._made)
        return [
            tensor
            for storage, tensor in made
            if tensor is not None and id(storage) in fresh and storage.bytes
        ]


def _place() -> str:
    """The line of the user's that is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (
        frame.f_code.co_filename.startswith(HOMES) or "<" in frame.f_code.co_filename
    ):
        frame = frame.f_back
    return "" if frame is None else f" ({os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno})"


def _has_memory(t: Tensor) -> bool:
    return t.layout is torch.strided and (t.is_cpu or t.is_cuda)


_STEP = Schema("step", "", (), random=False, depends_on_values=False)
