"""From what was recorded to a program that the native side runs."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastnn import _dispatch, optim
from fastnn._diagnostics import counted
from fastnn._dispatch import Unsupported
from fastnn.capture.epilogues import fuse_epilogues
from fastnn.capture.fusion import fuse
from fastnn.capture.ir import Elementwise, Instruction, Island, Node, OptimizerStep, Storage, View
from fastnn.capture.islands import Place, call_island, call_optimizer, in_bytes, view_of
from fastnn.capture.lowering import Lowering, lower
from fastnn.capture.lowering.table import ERRORS
from fastnn.capture.memory import Arena, without_dead
from fastnn.capture.signature import DTYPES, Signature, strides_that_matter
from fastnn.capture.tape import Op, Step, Tape, as_view, name_of, parameters_of, views_in
from fastnn.capture.watch import unwatched_backward, watch_optimizer
from fastnn.optim.native import match_layout

# The rules of csrc/bindings/program.cpp, by the class of the optimizer.
_RULES = {
    getattr(home, name): rule
    for home in (torch.optim, optim)
    for name, rule in (
        ("Adam", "adam"),
        ("AdamW", "adam"),
        ("SGD", "sgd"),
        ("RMSprop", "rmsprop"),
        ("Adagrad", "adagrad"),
    )
}


@dataclass
class Gradients:
    """What happens to ``.grad`` in a call.

    Attributes:
        state: for memory that is the ``.grad`` of a parameter in each call, that parameter and the ``.grad``
            recorded.
        absent: parameters without one before a call.
        cleared: parameters without one after it.
        kept: parameters that get one, and its memory.
        withheld: those of `cleared` that have one in torch.
        lost: memory of gradients that were there before and are dropped.
    """

    state: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # by id of the Storage
    absent: list[Tensor] = field(default_factory=list)
    cleared: list[Tensor] = field(default_factory=list)
    kept: list[tuple[Tensor, View]] = field(default_factory=list)
    lost: list[Storage] = field(default_factory=list)
    withheld: list[Tensor] = field(default_factory=list)


@dataclass(repr=False)
class Program:
    """One recording, ready to be replayed; ``update.programs`` lists them.

    Attributes:
        takes: the tensors among the arguments, in words.
        instructions: the names of the native instructions, in order; last those that Python calls.
        islands: the ops that torch runs, each with the reason.
        optimizers: the classes of the optimizers whose steps it takes.
        arena_bytes: memory that it keeps for what it computes.
        checked: whether it has been compared with torch; None until then.
    """

    native: Any
    takes: str
    instructions: tuple[str, ...]
    islands: tuple[tuple[str, str], ...]
    optimizers: tuple[str, ...]
    arena_bytes: int
    reached: list[Tensor]  # parameters, and tensors from before that it writes
    steps: list[OptimizerStep]
    generators: list[torch.Generator]
    dropped: list[Tensor]  # parameters whose gradients it does not keep
    written_inputs: list[int]  # tensors among the arguments, by number
    reference: Any = None  # the same made of torch's ops, until it has been compared
    key: Hashable = None
    checked: bool | None = None
    # Attributes of modules whose training mode the function sets, with that mode.
    modes: list[tuple[dict[str, Any], bool]] = field(default_factory=list)

    def __repr__(self) -> str:
        """Short: a dataclass would show every tensor."""
        return f"<Program {str(self).partition(chr(10))[0]}>"

    def __str__(self) -> str:
        """A few lines for `fastnn.explain`."""
        told = {None: "not yet compared with torch", True: "compared with torch", False: "not compared"}
        groups = self.instructions.count("elementwise")
        fused = f", including {counted(groups, 'group')} of fused elementwise ops" if groups else ""
        lines = [
            f"for {self.takes}: {counted(len(self.instructions), 'native instruction')}{fused}; "
            f"{counted(len(self.islands), 'op')} run by torch; "
            f"{counted(self.arena_bytes, 'byte')} of its own; {told[self.checked]}"
        ]
        if self.optimizers:
            lines.append(f"  steps of {', '.join(self.optimizers)}")
        lines.extend(
            f"  torch runs {op}" + (f" {count} times" if count > 1 else "") + f": {reason}"
            for (op, reason), count in Counter(self.islands).items()
        )
        return "\n".join(lines)


def lowered(tape: Tape, *, natively: bool) -> list[Node]:
    """Instructions for the ops of a recording; islands if there are none or `natively` is False."""
    low = Lowering()
    for entry in tape.entries:
        if isinstance(entry, Step):
            low.nodes.append(OptimizerStep(entry.optimizer, *_in_order(low, entry)))
            continue
        before = len(low.nodes)
        name = entry.schema.name
        out = (
            list(entry.results)
            if isinstance(entry.results, (tuple, list)) and not isinstance(entry.results, View)
            else entry.results
        )
        try:
            if natively and lower(low, name, out, entry.args, entry.kwargs):
                continue
            reason = "no native instruction"
        except Unsupported as unsupported:
            reason = str(unsupported)
        del low.nodes[before:]
        low.nodes.append(_island(entry, reason))
    return low.nodes


def _in_order(low: Lowering, step: Step) -> tuple[list[tuple[Tensor, View]], list[View]]:
    """Gradients with the memory order of their parameters."""
    gradients = []
    for (param, grad), view in zip(step.gradients, step.parameters, strict=True):
        if _same_layout(grad, view):
            gradients.append((param, grad))
            continue
        if not view.is_dense:
            raise Unsupported("a parameter does not fill one block of memory")
        if view.dtype not in DTYPES:
            raise Unsupported(f"a gradient of {grad.dtype} for a parameter of {view.dtype}, of other strides")
        ordered = low.temporary(view.shape, view.dtype).with_shape(view.shape, view.strides)
        low.elementwise(ordered, grad)
        gradients.append((param, ordered))
    return gradients, step.parameters


def _same_layout(a: View, b: View) -> bool:
    return a.dtype is b.dtype and (a.shape, strides_that_matter(a.shape, a.strides)) == (
        b.shape,
        strides_that_matter(b.shape, b.strides),
    )


def _island(op: Op, reason: str) -> Island:
    fresh = set(map(id, op.fresh))
    found = (
        op.results
        if isinstance(op.results, (tuple, list)) and not isinstance(op.results, View)
        else (op.results,)
    )
    results = [r if isinstance(r, View) and id(r.storage) in fresh else None for r in found]
    writes: list[View] = []
    for position, name in op.schema.writes:
        written = op.args[position] if position < len(op.args) else op.kwargs.get(name)
        writes.extend(views_in(written))
    reads = list(views_in((op.args, op.kwargs)))
    return Island(op.op, op.args, op.kwargs, results, reads, writes, op.schema.random, reason)


class Builder:
    """Lays a recording out."""

    def __init__(
        self,
        tape: Tape,
        signature: Signature,
        gradients: Gradients,
        results: list[View],
        watch: Any,
        *,
        natively: bool = True,
    ) -> None:
        """`results` are the tensors that the function returns and made."""
        self.natively = natively
        self.tape = tape
        self.signature = signature
        self.gradients = gradients
        self.watch = watch
        self.outputs: list[Storage] = []
        self._whole: list[View] = []  # the View of each output that fills it
        for view in [*(view for _, view in gradients.kept), *results]:
            if view.storage not in self.outputs:
                self.outputs.append(view.storage)
                self._whole.append(_whole(view))
        for _, view in gradients.kept:
            if not self.is_whole(view):
                raise Unsupported(f"a gradient of {view.dtype} that may share its memory with another")
        self.inputs: dict[int, int] = {}  # the first argument in each memory, by id of the Storage
        for i, view in enumerate(tape.inputs):
            self.inputs.setdefault(id(view.storage), i)
            view.storage.tensor = signature.tensors[i]
        self.nodes = self._simplified()
        self.arena = Arena(self.nodes, self.outputs)
        self.memory = torch.empty(self.arena.bytes, dtype=torch.uint8, device="cpu")
        self._memories: list[tuple[Any, ...]] = []
        self._numbers: dict[int, int] = {}  # of buffers, by id of the Storage
        self._written = {
            id(view.storage)
            for node in self.nodes
            if not isinstance(node, OptimizerStep)
            for view in node.outs
        }

    def _simplified(self) -> list[Node]:
        kept = self.outputs
        for storage in self.gradients.lost:
            storage.tensor = None
        nodes = without_dead(lowered(self.tape, natively=self.natively), kept)
        # An island that overwrites its memory is among those that read it: the native nodes decide for both.
        before = set(map(id, self.gradients.lost)) if self.natively else set()
        for node in nodes:
            if any(id(view.storage) in before for view in node.ins):
                raise Unsupported("a gradient from before the call is read, and then dropped")
            before.difference_update(id(view.storage) for view in node.outs if _whole(view) == view)
        nodes = fuse(fuse_epilogues(nodes, kept), kept)
        return without_dead(nodes, kept)

    def build(self, result: int | Callable[..., Any]) -> Program:
        """The program; `result` makes what the function returns, or is the number of an output."""
        nodes = [self._node(node) for node in self.nodes]
        for key, (param, grad) in self.gradients.state.items():
            self._buffer(key, "gradient", 0, param, grad)
        unread = []
        for storage in self.tape.externals:  # what torch's ops read is also checked before a call
            tensor = storage.tensor
            if tensor is not None and tensor.dtype in DTYPES:
                self._place(as_view(tensor, storage))
            elif tensor is not None:
                unread.append((functools.partial(_is_as_it_was, tensor, _looks(tensor)), True))
        written, written_inputs = self._all_written()
        states = [
            *_dispatch.present_states(),
            (_dispatch.is_disabled, False),
            *unwatched_backward(),
            (torch.is_grad_enabled, torch.is_grad_enabled()),
            (torch.is_inference_mode_enabled, torch.is_inference_mode_enabled()),
            (torch.get_default_dtype, torch.get_default_dtype()),
            *unread,
        ]
        called = [node for node in self.nodes if isinstance(node, Island)]
        steps = [node for node in self.nodes if isinstance(node, OptimizerStep)]
        native = _dispatch.cpu.Program(
            states,
            self.watch,
            self.signature.spec,
            self._memories,
            [_allocator(view) for view in self._whole],
            nodes,
            self.gradients.absent,
            self.gradients.cleared,
            [(param, self.outputs.index(view.storage)) for param, view in self.gradients.kept],
            written,
            written_inputs,
            self._shared_inputs(),
            [(step.optimizer, parameters_of(step.optimizer)) for step in steps],
            result,
            match_layout,
        )
        for view in self.tape.inputs:
            view.storage.tensor = None
        return Program(
            native,
            self.signature.takes,
            (
                *(node.name for node in self.nodes if isinstance(node, Instruction)),
                *(name_of(node.op) for node in called if node.native),
            ),
            tuple((name_of(node.op), node.reason) for node in called if not node.native),
            tuple(type(step.optimizer).__name__ for step in steps),
            self.arena.bytes,
            [
                s.tensor
                for s in self.tape.externals
                if s.tensor is not None and (id(s) in self._written or s.tensor.requires_grad)
            ],
            steps,
            [g for node in called for g in node.kwargs.values() if isinstance(g, torch.Generator)],
            self.gradients.withheld,
            written_inputs,
        )

    def _node(self, node: Node) -> tuple[Any, ...]:
        if isinstance(node, Island):
            return ("python", *call_island(node, self.place))
        if isinstance(node, OptimizerStep):
            return self._optimizer(node)
        if isinstance(node, Elementwise):
            raise TypeError("an elementwise node was not fused")
        operands = [
            (*self._place(view), DTYPES[view.dtype], view.shape, view.strides)
            for view in (*node.outs, *node.ins)
        ]
        error = ERRORS.get(node.name)
        raises = None if error is None else functools.partial(error, node)
        return ("native", node.name, operands, node.numbers, node.code, len(node.outs), raises)

    def _optimizer(self, step: OptimizerStep) -> tuple[Any, ...]:
        in_python = call_optimizer(step, self.place)
        rule = _RULES.get(type(step.optimizer))
        if (
            rule is None
            or not all(param.dtype in DTYPES for param in parameters_of(step.optimizer))
            or getattr(step.optimizer, "state_dtype", None)
            or getattr(step.optimizer, "master_weights", False)
        ):
            return ("python", in_python, True)
        try:
            watch_optimizer(self.watch, step.optimizer)
        except Unsupported:  # its message says why Python takes the step
            return ("python", in_python, True)
        gradients = [(param, *self._place(view)) for param, view in step.gradients]
        return ("optimizer", rule, step.optimizer, gradients, in_python)

    def _place(self, view: View) -> tuple[int, int]:
        """The number of the buffer, and the byte in it at which the view begins."""
        storage, start = view.storage, view.offset * view.dtype.itemsize
        planned = self.arena.offsets.get(id(storage))
        if planned is not None:
            return self._buffer(0, "arena", 0, self.memory, self.memory), planned + start
        if storage in self.outputs:
            return self._output(storage), start
        if id(storage) in self.inputs:
            number = self._argument_of(view)
            argument = self.signature.tensors[number]
            key = id(storage) if number == self.inputs[id(storage)] else id(argument)
            return self._buffer(key, "input", number, None, argument), start
        if id(storage) in self.gradients.state:
            param, grad = self.gradients.state[id(storage)]
            return self._buffer(id(storage), "gradient", 0, param, grad), start
        return self._buffer(id(storage), "external", 0, storage.tensor, storage.tensor), start

    def _argument_of(self, view: View) -> int:
        """The argument that contains the view, if several share its memory; else the first in it."""
        first = self.inputs[id(view.storage)]
        if id(view.storage) not in self._written and view.numel:
            for i, argument in enumerate(self.tape.inputs):
                if argument.storage is view.storage and argument.numel and argument.spans(view):
                    return i
        return first

    def _output(self, storage: Storage) -> int:
        key = id(storage)
        if key not in self._numbers:
            self._numbers[key] = len(self._memories)
            entry = ("output", self.outputs.index(storage), None, (0, (), ()), False, 0, storage.bytes, True)
            self._memories.append(entry)
        return self._numbers[key]

    def _buffer(self, key: int, kind: str, index: int, holder: Any, looks: Tensor | None) -> int:
        if key not in self._numbers:
            if looks is None or looks.dtype not in DTYPES:
                raise Unsupported(f"memory of dtype {None if looks is None else looks.dtype}")
            self._numbers[key] = len(self._memories)
            description = (DTYPES[looks.dtype], tuple(looks.shape), looks.stride())
            self._memories.append(
                (
                    kind,
                    index,
                    holder,
                    description,
                    kind == "external" and looks.requires_grad,
                    looks.storage_offset() * looks.dtype.itemsize,
                    looks.untyped_storage().nbytes(),
                    kind == "arena" or key in self._written,
                )
            )
        return self._numbers[key]

    def place(self, view: View) -> Place:
        """Where the tensor of a View is found in a call."""
        storage = view.storage
        planned = self.arena.offsets.get(id(storage))
        if planned is not None:
            return Place(in_bytes(self.memory, view, planned))
        if storage in self.outputs:
            number = self.outputs.index(storage)
            return Place(find=lambda inputs, outputs: view_of(outputs[number], view))
        if id(storage) in self.inputs:
            index = self.inputs[id(storage)]
            before = self.tape.inputs[index].offset
            return Place(find=lambda inputs, outputs: view_of(inputs[index], view, before))
        if id(storage) in self.gradients.state:
            param, grad = self.gradients.state[id(storage)]
            before = int(grad.storage_offset())
            return Place(find=lambda inputs, outputs: view_of(_gradient(param), view, before))
        tensor = storage.tensor
        if tensor is None:
            # Read by torch and never written, because it is filled with random numbers in place.
            return Place(in_bytes(torch.empty(storage.bytes, dtype=torch.uint8, device="cpu"), view, 0))
        before = int(tensor.storage_offset())
        return Place(find=lambda inputs, outputs: view_of(tensor, view, before))

    def is_whole(self, view: View) -> bool:
        """Whether an output is exactly this view of its memory."""
        return self._whole[self.outputs.index(view.storage)] == view

    def _shared_inputs(self) -> list[tuple[int, int, int]]:
        """Arguments in the memory of an earlier one: both numbers, and the bytes between them."""
        shared = []
        for i, view in enumerate(self.tape.inputs):
            first = self.inputs[id(view.storage)]
            if first != i:
                other = self.tape.inputs[first]
                between = view.offset * view.dtype.itemsize - other.offset * other.dtype.itemsize
                shared.append((i, first, between))
        return shared

    def _all_written(self) -> tuple[list[Tensor], list[int]]:
        tensors, inputs = [], []
        for storage in self.tape.externals:
            if (
                id(storage) in self._written
                and storage.tensor is not None
                and not storage.tensor.is_inference()
            ):
                tensors.append(storage.tensor)
        for i, view in enumerate(self.tape.inputs):
            if id(view.storage) in self._written:
                inputs.append(i)
        return tensors, inputs


def _whole(view: View) -> View:
    """The View itself if it fills its memory and native code has its type, else the whole memory, flat."""
    size = view.dtype.itemsize
    if view.dtype not in DTYPES:  # native code does not know the type
        return View(view.storage, 0, (view.storage.bytes,), (1,), torch.uint8)
    if view.offset == 0 and view.is_dense and view.numel * size == view.storage.bytes:
        return view
    return View(view.storage, 0, (-(-view.storage.bytes // size),), (1,), view.dtype)


def _looks(tensor: Tensor) -> tuple[Any, ...]:
    """The properties on which a program relies, of a tensor that native code cannot inspect."""
    memory = tensor.untyped_storage().data_ptr()
    return memory, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad


def _is_as_it_was(tensor: Tensor, looks: tuple[Any, ...]) -> bool:
    return _looks(tensor) == looks


def _allocator(view: View) -> Callable[[], Tensor]:
    return functools.partial(torch.empty_strided, view.shape, view.strides, dtype=view.dtype, device="cpu")


def _gradient(param: Tensor) -> Tensor:
    if param.grad is None:
        raise RuntimeError("a gradient is gone while the program runs")
    return param.grad
