"""A captured function on a CUDA device: torch's own kernels in a CUDA graph.

The recording found which memory the graph will use and what happens to gradients; the graph itself is made in
the next call, by running the function once more. A replay repeats the same kernels on the same addresses. So
arguments are copied to where the graph reads them, its results are copied from there, and before each replay
it is checked that everything else is where it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from fastnn import _dispatch, optim
from fastnn._dispatch import Unsupported
from fastnn._torch_internals import note_step
from fastnn.capture import cuda_graph
from fastnn.capture.ir import Storage, View
from fastnn.capture.islands import view_of
from fastnn.capture.program import Gradients
from fastnn.capture.recording import Recording
from fastnn.capture.signature import Signature, signature
from fastnn.capture.tape import Op, Step, as_view, parameters_of, replace, views_in
from fastnn.capture.watch import unwatched_backward

# These can read a learning rate on the device; other options are scalar kernel arguments.
_READ_LR = (torch.optim.Adam, torch.optim.AdamW, optim.Adam, optim.AdamW)
# These count nothing on the host.
_COUNT_NOTHING = (torch.optim.SGD, optim.SGD)


class GraphProgram:
    """One recording on a CUDA device; ``update.programs`` lists them.

    Attributes:
        optimizers: the classes of the optimizers whose steps it takes.
        checked: True once there is a graph, which needs no comparison because it has torch's own kernels;
            None before.
        dropped: parameters whose gradients it does not keep.
        islands: none; see `Program`.
        takes: the tensors among the arguments, in words.
        runs: calls that it has served.
        thread: of the last of them, or of the recording.
    """

    islands: tuple[tuple[str, str], ...] = ()

    def __init__(self, called: Signature, recording: Recording, gradients: Gradients, watch: Any) -> None:
        """Raises `Unsupported` if no graph can do what was recorded."""
        assert recording.device is not None  # an op has run there
        self._device = recording.device
        entries, inputs = recording.tape.entries, recording.tape.inputs
        external = [(id(s), s.tensor) for s in recording.tape.externals if s.tensor is not None]
        steps = [entry.optimizer for entry in entries if isinstance(entry, Step)]
        failed = cuda_graph.why_failed(self._device)
        if failed is not None:
            raise Unsupported(f"a capture has failed on {self._device}: {failed}")
        if gradients.lost:
            raise Unsupported("a gradient from before the call is read, and then dropped")
        if any(isinstance(e, Op) and e.kwargs.get("generator") is not None for e in entries):
            raise Unsupported("it draws from its own generator")
        if len({id(view.storage) for view in inputs}) < len(inputs):
            raise Unsupported("arguments share their memory")
        self.key: Hashable = called.key
        self.modes: list[tuple[dict[str, Any], bool]] = []  # as in `Program`
        self.checked: bool | None = None
        self.dropped = gradients.withheld
        self.optimizers = tuple(type(o).__name__ for o in steps)
        self._updates = [_Update(o, self._device) for o in dict.fromkeys(steps)]
        self._gradients = gradients
        self._states = [*_dispatch.present_states(), (_dispatch.is_disabled, False), *unwatched_backward()]
        self._arithmetic = cuda_graph.arithmetic()
        self._watch = watch
        for _, tensor in external:
            watch.attribute(tensor, "requires_grad", tensor.requires_grad)
        written = {id(view.storage) for entry in entries for view in _writes(entry)}
        self._written = [t for key, t in external if key in written and not t.is_inference()]
        self._written_inputs = [i for i, view in enumerate(inputs) if id(view.storage) in written]
        self._held = [t for _, t in external] + [t for update in self._updates for t in update.memory]
        self._places = [_place(t) for t in self._held]
        self.takes = called.takes
        self.runs = 0
        self.thread = threading.get_ident()
        self._lock = threading.Lock()
        self._inputs: list[Tensor] = []
        self._ordered: list[bool] = []  # whether they keep the strides of the arguments
        self._replay: Callable[[], None] = _nothing
        self._result: Any = None
        self._grads: list[Tensor] = []

    def __str__(self) -> str:
        """A line or two for `fastnn.explain`."""
        made = "replayed" if self.checked else "to be made in the next call"
        lines = [f"for {self.takes}: CUDA graph of torch's kernels on {self._device}, {made}"]
        if self.optimizers:
            lines.append(f"  steps of {', '.join(self.optimizers)}")
        return "\n".join(lines)

    @property
    def native(self) -> GraphProgram:
        """What is called: itself."""
        return self

    @property
    def running(self) -> bool:
        """Whether a call must run as written: another thread replays it, or this stream is being captured."""
        return self._lock.locked() or cuda_graph.why_not_now(self._device) is not None

    def begin(self, arguments: tuple[Any, Any], fn: Callable[..., Any]) -> tuple[Any, str | None] | None:
        """Make the graph of `fn`, and serve this call with its first replay.

        Returns:
            The result and None; or the result of `fn`, and why there is no graph. None, with nothing done, if
            the function would depend on something other than when it was recorded.
        """
        args, kwargs = arguments
        tensors = signature(args, kwargs).tensors
        if self.running or not self._holds():
            return None
        mine = {id(t): torch.empty_like(t).copy_(t) for t in tensors}
        before = [(leaf, leaf.grad) for leaf in self._leaves()]
        why = None
        try:
            static_args, static_kwargs = replace(arguments, Tensor, lambda t: mine.get(id(t), t))
            self._replay, (result, self._grads) = cuda_graph.capture(
                self._device,
                _nothing,  # the two calls before have loaded and set up what it needs
                _nothing,
                lambda: self._body(lambda: fn(*static_args, **static_kwargs)),
            )
        except Exception as error:  # of torch's, of CUDA's, or the function's own, which it will raise again
            why = f"it cannot be captured in a CUDA graph: {str(error).partition(chr(10))[0]}"
        finally:
            for leaf, grad in before:
                leaf.grad = grad
        if why is None:
            self._inputs = [mine[id(t)] for t in tensors]
            self._ordered = [t.stride() == own.stride() for t, own in zip(tensors, self._inputs, strict=True)]
            try:
                self._result = replace(result, Tensor, self._maker)
            except Unsupported as reason:
                why = str(reason)
        if why is None:
            self.checked = True
            taken = self.run(arguments)
            if taken is not NotImplemented:
                return taken, None
            why = "it changes something that it reads besides its arguments"
        return fn(*args, **kwargs), why

    def run(self, arguments: tuple[Any, Any]) -> Any:
        """The result of a call; NotImplemented, with nothing done, if this is not the program for it."""
        args, kwargs = arguments
        try:
            called = signature(args, kwargs)
        except Unsupported:
            return NotImplemented
        if called.key != self.key or not self._lock.acquire(blocking=False):
            return NotImplemented
        try:
            if cuda_graph.why_not_now(self._device) is not None or not self._holds():
                return NotImplemented
            with torch.no_grad(), cuda_graph.in_turn(self._device):
                return self._take(called.tensors)
        finally:
            self._lock.release()

    def _take(self, given: list[Tensor]) -> Any:
        for mine, theirs in zip(self._inputs, given, strict=True):
            mine.copy_(theirs)
        for update in self._updates:
            update.refresh()
        self._replay()
        for i in self._written_inputs:
            given[i].copy_(self._inputs[i])
        # The next replay overwrites what is in the graph's memory.
        for (leaf, _), grad in zip(self._gradients.kept, self._grads, strict=True):
            leaf.grad = grad.clone()
        for leaf in self._gradients.cleared:
            leaf.grad = None
        copies: dict[int, torch.UntypedStorage] = {}
        result = replace(self._result, _Result, lambda made: made.tensor(given, copies))
        increment_version(self._written)
        self.runs += 1
        self.thread = threading.get_ident()
        for update in self._updates:
            note_step(update.optimizer)
        return result

    def _body(self, call: Callable[[], Any]) -> tuple[Any, list[Tensor]]:
        with ExitStack() as during:
            during.enter_context(_dispatch.recorded())
            for update in self._updates:
                during.enter_context(update.on_device())
            result = call()
        return result, [leaf.grad for leaf, _ in self._gradients.kept if leaf.grad is not None]

    def _leaves(self) -> Iterator[Tensor]:
        found = self._gradients
        yield from (leaf for leaf, _ in (*found.state.values(), *found.kept))
        yield from (*found.absent, *found.cleared)

    def _holds(self) -> bool:
        """Whether the function would do the same work on the same memory."""
        return (
            all(ask() == answer for ask, answer in self._states)
            and self._watch.unchanged()
            and self._arithmetic == cuda_graph.arithmetic()
            and all(leaf.grad is None for leaf in self._gradients.absent)
            and all(leaf.grad is grad for leaf, grad in self._gradients.state.values())
            and all(update.holds() for update in self._updates)
            and [_place(t) for t in self._held] == self._places
        )

    def _maker(self, t: Tensor) -> _Result:
        """How to make a call's result from the tensor that the graph writes."""
        memory = _address(t)
        number = next(
            (i for i, mine in enumerate(self._inputs) if t is mine or memory == _address(mine) != 0), None
        )
        if number is not None:
            mine = self._inputs[number]
            if t is mine:
                return _Result(lambda given, copies: given[number])
            if not self._ordered[number]:
                raise Unsupported("it returns a view of an argument that does not fill its memory")
            view, before = as_view(t, Storage(0)), int(mine.storage_offset())
            return _Result(lambda given, copies: view_of(given[number], view, before))
        if any(_address(theirs) == memory for theirs in self._held):
            return _Result(lambda given, copies: t)
        return _Result(lambda given, copies: _copied(t.detach(), copies))


class _Result:
    """What makes one tensor among the results.

    Attributes:
        tensor: from the tensors among the arguments, and copies of the graph's memory by address.
    """

    def __init__(self, tensor: Callable[[list[Tensor], dict[int, torch.UntypedStorage]], Tensor]) -> None:
        self.tensor = tensor


def _place(t: Tensor) -> tuple[Any, ...]:
    return t.data_ptr(), t.shape, t.stride()


def _address(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def _copied(t: Tensor, copies: dict[int, torch.UntypedStorage]) -> Tensor:
    """`t` in a copy of its memory; tensors that share memory share its copy."""
    storage = t.untyped_storage()
    copy = copies.get(storage.data_ptr())
    if copy is None:
        copy = copies[storage.data_ptr()] = storage.clone()
    return t.new_empty(0).set_(copy, t.storage_offset(), t.shape, t.stride())


class _Update:
    """An optimizer stepped in the graph: what must not change, and the learning rates that may.

    Attributes:
        memory: the tensors whose addresses are in the graph.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        kind = type(optimizer)
        groups = optimizer.param_groups
        if kind not in _COUNT_NOTHING and not all(group.get("capturable") for group in groups):
            raise Unsupported(f"{kind.__name__} counts its steps on the host: create it with capturable=True")
        self.optimizer = optimizer
        # torch's fused kernels take a learning rate in float32 only, which is too coarse for float64.
        self._live = [
            kind in _READ_LR
            and not isinstance(group["lr"], Tensor)
            and all(p.dtype is not torch.float64 for p in group["params"])
            for group in groups
        ]
        self._rates = [torch.zeros((), device=device) for _ in groups]
        self._said = [float("nan") for _ in groups]
        self._options = self._options_now()
        self._state = list(self._state_now())
        self.memory = [*self._state, *(g["lr"] for g in groups if isinstance(g["lr"], Tensor))]
        if any(t.device != device for t in self.memory):
            raise Unsupported(f"{kind.__name__} keeps a part of its state on the host")

    def _options_now(self) -> list[tuple[Any, ...]]:
        """All scalar kernel arguments, and tensors by identity."""
        return [
            (
                [*map(id, group["params"])],
                {
                    key: id(value) if isinstance(value, Tensor) else value
                    for key in self.optimizer.defaults
                    if not (live and key == "lr")
                    for value in (group[key],)
                },
            )
            for group, live in zip(self.optimizer.param_groups, self._live, strict=True)
        ]

    def _state_now(self) -> Iterator[Tensor]:
        state = self.optimizer.state
        for param in parameters_of(self.optimizer):
            yield from (t for t in state.get(param, {}).values() if isinstance(t, Tensor))

    def holds(self) -> bool:
        """Whether parameters, state and options are unchanged, except for learning rates."""
        return (
            len(self.optimizer.param_groups) == len(self._live)
            and self._options_now() == self._options
            and [*map(id, self._state_now())] == [*map(id, self._state)]
        )

    def refresh(self) -> None:
        """Copy changed learning rates to the device."""
        for i, group in enumerate(self.optimizer.param_groups):
            if self._live[i] and group["lr"] != self._said[i]:
                self._rates[i].fill_(group["lr"])
                self._said[i] = group["lr"]

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Make the optimizer read its learning rates on the device."""
        groups = self.optimizer.param_groups
        before = [group["lr"] for group in groups]
        try:
            for group, rate, live in zip(groups, self._rates, self._live, strict=True):
                if live:
                    group["lr"] = rate
            yield
        finally:
            for group, lr in zip(groups, before, strict=True):
                group["lr"] = lr


def _writes(entry: Op | Step) -> Iterator[View]:
    if isinstance(entry, Step):
        yield from entry.parameters
        return
    for position, name in entry.schema.writes:
        yield from views_in(entry.args[position] if position < len(entry.args) else entry.kwargs.get(name))


def _nothing() -> None:
    """Do nothing."""
