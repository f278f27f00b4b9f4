"""Sees every torch op that a function runs, backward included, and notes it with its memory."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastnn._dispatch import Unsupported
from fastnn._torch_internals import (
    TorchDispatchMode,
    is_composite,
    within_backward,
)
from fastnn.capture.recording import Recording
from fastnn.capture.steps import Steps
from fastnn.capture.tape import Op, Schema, replace, schema_of, tensors_in, views_in
from fastnn.capture.unseen import Unseen

# These change which memory a tensor has, not its values.
_MOVES_MEMORY = {"resize_.default", "resize_as_.default", "set_.source_Tensor", "set_.source_Storage"}
# The shape of their results depends on values only with boolean indices.
_INDEXING = {"index.Tensor", "index_put.default", "index_put_.default", "_index_put_impl_.default"}


def _refuse_collective(schema: Schema) -> None:
    if schema.namespace.startswith(("c10d", "_c10d")):
        raise Unsupported(f"the collective {schema.name}")


@cache
def _is_composite(op: Any) -> bool:
    return is_composite(op)


class _Within:
    """The ops inside an op, under the mode that has received it."""

    def __init__(self, mode: TorchDispatchMode) -> None:
        self._mode = mode

    def __enter__(self) -> None:
        TorchDispatchMode.__enter__(self._mode)

    def __exit__(self, *error: object) -> None:
        TorchDispatchMode.__exit__(self._mode, *error)


class Recorder(TorchDispatchMode):
    """While it is active, ops of the calling thread run as usual and are noted, until something that a
    recording cannot hold ends it.

    Attributes:
        recording: what has been noted.
        steps: those of optimizers.
    """

    def __init__(self, inputs: list[Tensor], optimizers: Iterable[Optimizer] = ()) -> None:
        """`inputs` are the tensors among the arguments; `optimizers` those that the function may use."""
        super().__init__()
        self.recording = Recording(inputs)
        self.steps = Steps(self.recording, optimizers)
        self._of_numpy: set[int] = set()  # by id of the Storage, memory that the function takes from NumPy
        self._hooks: list[Any] = []
        self._unseen = Unseen(self.recording)

    def __enter__(self) -> Any:
        """Begin."""
        self._hooks = [
            *self.steps.hooks(),
            torch.nn.modules.module.register_module_forward_pre_hook(self._module_called),
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
        noted, kwargs = self.recording, kwargs or {}
        if noted.refused is not None:
            return func(*args, **kwargs)
        noted.ran_backward = noted.ran_backward or within_backward()
        try:
            schema = schema_of(func)
            if noted.paused:
                _refuse_collective(schema)  # anything else in an optimizer's step is also done by a replay
                return func(*args, **kwargs)
            if schema.namespace == "profiler":
                return func(*args, **kwargs)
            if torch.is_inference_mode_enabled() and _is_composite(func):  # elsewhere autograd decomposes it
                with _Within(self):
                    return func.decompose(*args, **kwargs)
            self._check(schema, args, kwargs)
            if schema.name == "lift_fresh.default":
                return self._constant(func(*args))
            noted_args = tuple(replace(a, Tensor, noted.view) for a in args)
            noted_kwargs = {key: replace(a, Tensor, noted.view) for key, a in kwargs.items()}
            self._check_written(schema, noted_args, noted_kwargs)
        except Unsupported as reason:
            noted.refuse(str(reason))
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        try:
            for t in tensors_in(result):
                noted.check(t)
            before = len(noted.tape.fresh)
            results = replace(result, Tensor, noted.result)
            fresh = tuple(noted.tape.fresh[before:])
            if fresh or schema.writes or schema.random:  # else the results are views: no work
                noted.tape.entries.append(Op(func, schema, noted_args, noted_kwargs, results, fresh))
        except Unsupported as reason:
            noted.refuse(str(reason))
        return result

    def _constant(self, tensor: Tensor) -> Tensor:
        """A tensor of Python numbers is made again in each call, from a permanent copy; one that shares the
        memory of a NumPy array has the array's content at each call."""
        known = self.recording.storage_of(tensor)
        if not tensor.untyped_storage().resizable():
            if known is not None and self.recording.is_argument(known):
                raise Unsupported("an argument shares memory with a NumPy array")
            self._of_numpy.add(id(self.recording.view(tensor).storage))
        elif known is None:
            made, copy_ = self.recording.result(tensor), torch.ops.aten.copy_.default
            source = self.recording.first_view(kept := tensor.clone(), kept)
            self.recording.tape.entries.append(Op(copy_, schema_of(copy_), (made, source), {}, made, ()))
        return tensor

    def _check(self, schema: Schema, args: Any, kwargs: Any) -> None:
        _refuse_collective(schema)
        if schema.name in _MOVES_MEMORY:
            raise Unsupported(f"{schema.name} changes the memory of a tensor")
        if schema.depends_on_values and schema.name not in _INDEXING:
            if schema.name == "_local_scalar_dense.default":
                if (reader := self.recording.reader()) is not None:
                    raise Unsupported(
                        f"{reader} of torch reads a value, like .item(): call it outside, or avoid it"
                    )
                raise Unsupported(
                    "a value is read, by .item() or by Python's control flow on a tensor: return the tensor "
                    "and read it outside, or choose with torch.where"
                )
            raise Unsupported(f"the result of {schema.name} depends on values")
        if schema.name in _INDEXING:
            for t in tensors_in(args[1]):
                if t.dtype in (torch.bool, torch.uint8):
                    raise Unsupported(
                        "an index with a mask, whose result depends on values: choose with torch.where"
                    )
        for t in tensors_in((args, kwargs)):
            self.recording.check(t)

    def _check_written(self, schema: Schema, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for position, name in schema.writes:
            written = args[position] if position < len(args) else kwargs.get(name)
            if any(id(view.storage) in self._of_numpy for view in views_in(written)):
                raise Unsupported("it writes to the memory of a NumPy array: copy it with torch.tensor")

    def _module_called(self, module: torch.nn.Module, args: Any) -> None:
        if not self.recording.here():
            return
        if isinstance(module, (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)):
            self.recording.refuse(f"{type(module).__name__} works on other devices or in other processes")
        self.recording.tape.modules.append(module)
