"""A substitute for a CUDA graph, for tensors of the CPU and the emulated CUDA kernels.

While a body is recorded, every torch operation and every native call is noted with its arguments: numbers,
tensors by their present memory, dicts and lists in their present state. A replay makes the same calls on the
same memory. As with a real graph, recording itself has no effect: what it wrote is restored, and what it
allocated is filled with NaN. What a capture refuses is an error: reading a number back, drawing random
numbers, counting steps on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)


def _storage(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(key)
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _poison(t: Tensor) -> None:
    if t.is_floating_point():
        t.fill_(float("nan"))


class Recording(TorchDispatchMode):
    """What was called while it is active; `replay` repeats it."""

    def __init__(self) -> None:
        super().__init__()
        self.active = False
        self._calls: list[Callable[[], object]] = []
        self._made: dict[int, Tensor] = {}
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}
        self._aliases: dict[int, tuple[Tensor, Tensor]] = {}
        self._opaque = False

    def record(self, body: Callable[[], Any]) -> Any:
        self.active = True
        try:
            with self:
                result = body()
        finally:
            self.active = False
            for t, old in self._saved.values():
                t.copy_(old)
            self._saved.clear()
            self._aliases.clear()
        for t in self._made.values():
            _poison(t)
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for call in self._calls:
                call()

    def _save(self, t: Tensor) -> None:
        """Before `t` is written by something that is only recorded."""
        key = _storage(t)
        if key not in self._made and key not in self._saved and t.untyped_storage().nbytes():
            whole = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
            self._saved[key] = whole, whole.clone()

    def _alias(self, t: Tensor) -> Tensor:
        """The memory that `t` has now, even if `t` changes."""
        if id(t) not in self._aliases:
            alias = t.data  # with its own version: a graph's writes do not bump any
            if isinstance(t, nn.Parameter):
                alias = nn.Parameter(alias, requires_grad=t.requires_grad)
            self._aliases[id(t)] = t, alias
        return self._aliases[id(t)][1]

    def _frozen(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._alias(value)
        if isinstance(value, dict):
            return {self._frozen(key): self._frozen(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._frozen, value))
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._opaque:
            return func(*args, **kwargs)
        if func in _WAITS or torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError(f"{func} cannot be captured")
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        in_place = any(
            argument.alias_info is not None and argument.alias_info.is_write
            for argument in func._schema.arguments
        )
        for t in _tensors([*named.values()]):  # not all written tensors are declared: running statistics
            self._save(t)
        given = {_storage(t) for t in _tensors([*named.values()])}
        result = func(*args, **kwargs)
        frozen = self._frozen(list(args)), self._frozen(kwargs)
        if in_place:
            self._calls.append(lambda: func(*frozen[0], **frozen[1]))
            return result
        outs = [t.detach() for t in tree_leaves(result) if isinstance(t, Tensor)]
        if outs and all(_storage(t) in given for t in outs):
            return result  # views
        for t in outs:
            self._made[_storage(t)] = t
        self._calls.append(lambda: _again(func, frozen, outs))
        return result

    def native(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Note the call of a native function."""
        self._opaque = True
        try:
            if name == "adam_step":
                assert args[0]["capturable"] or args[0]["fused"], "steps are counted on the host"
            params = args[0]["params"] if name.endswith("_step") else []
            grads = [p.grad for p in params]
            for t in _tensors([*args, grads]):
                self._save(t)
            frozen, aliases, grads = self._frozen(args), self._frozen(params), self._frozen(grads)
            result = function(*args)
        finally:
            self._opaque = False

        def again() -> None:
            for p, grad in zip(aliases, grads, strict=True):
                p.grad = grad
            try:
                function(*self._frozen_again(frozen))
            except IndexError:  # raised by the host, which is not part of a graph
                function(*self._frozen_again(frozen))

        self._calls.append(again)
        return result

    @staticmethod
    def _frozen_again(value: Any) -> Any:
        """Native calls may add to the dicts passed to them."""
        if isinstance(value, dict):
            return {key: Recording._frozen_again(item) for key, item in value.items()}
        return tuple(map(Recording._frozen_again, value)) if isinstance(value, tuple) else value


def _again(func: Any, frozen: Any, outs: list[Tensor]) -> None:
    if func.__name__.startswith(("empty", "new_empty")):
        for out in outs:
            _poison(out)  # uninitialised memory
        return
    result = func(*frozen[0], **frozen[1])
    for out, t in zip(outs, (t for t in tree_leaves(result) if isinstance(t, Tensor)), strict=True):
        out.copy_(t)


class RecordedKernels:
    """The CUDA module, with its calls recorded."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.recording: Recording | None = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return partial(self._call, name, found) if callable(found) else found

    def _call(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        recording = self.recording
        if recording is None or not recording.active:
            return function(*args)
        return recording.native(name, function, *args)

    def capture(
        self,
        device: torch.device,
        rehearse: Callable[[], object],
        settled: Callable[[], None],
        body: Callable[[], Any],
    ) -> tuple[Callable[[], None], Any]:
        """Replaces `fastnn.capture.cuda_graph.capture`."""
        rehearse()
        settled()
        self.recording = recording = Recording()
        try:
            outputs = recording.record(body)
        finally:
            self.recording = None
        return recording.replay, outputs
