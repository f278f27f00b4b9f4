"""Turns a recording into a program, unless a replay would leave out something that the function does."""

from __future__ import annotations

import functools
import gc
from collections import OrderedDict
from collections.abc import Callable, Iterator, Set
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from fastnn import _dispatch
from fastnn._dispatch import Unsupported, refuse
from fastnn._torch_internals import BUFFERS, MODULE_HOOKS, MODULES, PARAMETERS, base_of
from fastnn.capture import cuda_graph
from fastnn.capture.graph_program import GraphProgram
from fastnn.capture.islands import in_bytes, view_of
from fastnn.capture.program import Builder, Gradients, Program
from fastnn.capture.recorder import Recorder
from fastnn.capture.recording import Recording
from fastnn.capture.signature import Signature
from fastnn.capture.surroundings import Surroundings
from fastnn.capture.tape import Tape, replace, tensors_in
from fastnn.capture.watch import same_global_hooks, same_hooks, watch_parts

# The dicts of a module; hooks that are added later are Python code that the recording does not know.
_TABLES = (PARAMETERS, BUFFERS, MODULES, *MODULE_HOOKS)
# What a replay may return unchanged, besides tensors, in tuples, lists and dicts.
_RETURNED = (Tensor, type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, Enum)


@cuda_graph.no_collection()
def assemble(
    called: Signature,
    recorder: Recorder,
    before: dict[int, tuple[Tensor, Tensor | None]],
    around: list[Any],
    names: Surroundings,
    result: Any,
    *,
    kept: Set[int],
    check: bool,
) -> Program | GraphProgram:
    """The program that replays what was recorded.

    Args:
        called: the signature of the call.
        recorder: what recorded it.
        before: the gradients before the call, with their parameters, by the ids of the parameters.
        around: what the function can reach besides its arguments.
        names: what it finds by name.
        result: what it returned.
        kept: ids of parameters whose gradients are kept in any case.
        check: see `fastnn.capture`.

    Raises:
        Unsupported: a replay would leave something out.
    """
    recording, tape = recorder.recording, recorder.recording.tape
    refuse(recorder.steps.options.changed())
    gradients_before = [grad for _, grad in before.values() if grad is not None]
    if recording.reaches_arguments([*(x for x in around if isinstance(x, Tensor)), *gradients_before]):
        raise Unsupported("an argument shares memory with a tensor that the function reaches in another way")
    fresh = set(map(id, tape.fresh))
    gradients = _gradients(recording, recorder.steps.stepped, before, kept)
    returned = [recording.view(t) for t in tensors_in(result)]
    given = set(map(id, called.tensors))
    for t in tensors_in(result):
        if t.grad_fn is not None:
            raise Unsupported("it returns a tensor with an autograd graph: return loss.detach()")
        if t.requires_grad and id(t) not in given and recording.view(t).storage.tensor is not t:
            raise Unsupported("it returns a tensor that it made and that requires a gradient: detach it")
    for part in _leaves_of(result):
        if not isinstance(part, _RETURNED):
            raise Unsupported(
                f"it returns a {type(part).__name__}: return tensors, numbers and text in tuples or dicts"
            )
    results = [view for view in returned if id(view.storage) in fresh]
    _refuse_survivors(recording, result)
    watch = _watch(tape, around)
    externals = [storage.tensor for storage in tape.externals if storage.tensor is not None]
    names.watch(watch, [*recording.leaves.values(), *externals])
    for leaf in recording.leaves.values() if recording.ran_backward else ():
        same_hooks(watch, leaf)
    device = recording.device
    if any(t.device != device for t in called.tensors):
        raise Unsupported(f"an argument is not on {device}, as its other tensors are")
    if device is not None and cuda_graph.is_there(device):
        made = [t for t, view in zip(tensors_in(result), returned, strict=True) if view in results]
        if any(map(_in_another_mode, made)):
            raise Unsupported("it enters or leaves inference mode: do that outside, around the call")
        return GraphProgram(called, recording, gradients, watch)
    programs = []
    for natively in (True, False) if check else (True,):
        builder = Builder(tape, called, gradients, results, watch, natively=natively)
        programs.append(builder.build(_maker(result, builder, recording)))
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
    """Notices changes of the parts and hooks of the modules that were called, and of those of `around`."""
    watch = _dispatch.cpu.Watch()
    same_global_hooks(watch)
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
    return watch


def _gradients(
    recording: Recording, stepped: Set[int], before: dict[int, tuple[Tensor, Tensor | None]], kept: Set[int]
) -> Gradients:
    """What the recording did to gradients, and so what a replay must do to them.

    Gradients of parameters that an optimizer updates in the function are not kept if the function itself
    drops those left by the call before: then only the function reads them.
    """
    found = Gradients()
    fresh = set(map(id, recording.tape.fresh))
    for key, leaf in recording.leaves.items():
        old, new = before.get(key, (leaf, None))[1], leaf.grad
        old_storage = None if old is None else recording.storage_of(old)
        if old is None:
            found.absent.append(leaf)
        elif old_storage is not None and new is not None and new is not old:
            found.lost.append(old_storage)  # it was read or written, and dropped
        elif old_storage is not None or (key in recording.asked and new is old):
            old_storage = recording.view(old).storage
            if id(old_storage) in found.state:  # a call could check only one of them
                raise Unsupported("gradients of several parameters are parts of one tensor")
            found.state[id(old_storage)] = (leaf, old)
        if new is None and old is not None:
            found.cleared.append(leaf)
        if new is None or new is old:
            continue
        view = recording.view(new)
        if id(view.storage) not in fresh:
            raise Unsupported("a gradient is memory that was there before")
        if new.requires_grad:
            raise Unsupported("a gradient has an autograd graph that outlives the call")
        if key in kept or old is None or key not in stepped:
            found.kept.append((leaf, view))
        else:
            found.cleared.append(leaf)
            found.withheld.append(leaf)
    return found


def _refuse_survivors(recording: Recording, result: Any) -> None:
    """Refuse tensors made by the function that outlive it, except in its result and in gradients."""
    grads = (leaf.grad for leaf in recording.leaves.values())
    known = [t for t in (*tensors_in(result), *grads) if t is not None]
    expected = {id(t) for t in known} | {id(base_of(t)) for t in known}

    def survives() -> bool:
        return any(id(tensor) not in expected for tensor in recording.survivors())

    if survives():
        gc.collect()  # it may be part of a reference cycle
        if survives():
            raise Unsupported("a tensor that it creates is stored outside its return value: return it")


def _in_another_mode(t: Tensor) -> bool:
    """Whether it was made in inference mode and the call is not in that mode, or vice versa."""
    return t.is_inference() is not torch.is_inference_mode_enabled()


def _maker(result: Any, builder: Builder, recording: Recording) -> int | Callable[..., Any]:
    """What builds the function's result from the arguments' tensors and the outputs."""
    if isinstance(result, Tensor):
        view = recording.view(result)
        if view.storage in builder.outputs and builder.is_whole(view) and not _in_another_mode(result):
            return builder.outputs.index(view.storage)
    makers = {id(t): _tensor_maker(t, builder, recording) for t in tensors_in(result)}

    def make(inputs: list[Tensor], outputs: list[Tensor]) -> Any:
        return replace(result_shape, _Maker, lambda maker: maker.make(inputs, outputs))

    result_shape = replace(result, Tensor, lambda t: makers[id(t)])
    return make


class _Maker:
    def __init__(self, make: Callable[[list[Tensor], list[Tensor]], Tensor]) -> None:
        self.make = make


def _argument(index: int, inputs: list[Tensor], outputs: list[Tensor]) -> Tensor:
    return inputs[index]


def _tensor_maker(t: Tensor, builder: Builder, recording: Recording) -> _Maker:
    view = recording.view(t)
    if view.storage in builder.outputs:
        number = builder.outputs.index(view.storage)
        if _in_another_mode(t):
            alias = torch.inference_mode(t.is_inference())(in_bytes)
            return _Maker(lambda inputs, outputs: alias(outputs[number], view, 0))
        if builder.is_whole(view):
            return _Maker(lambda inputs, outputs: outputs[number])
        return _Maker(lambda inputs, outputs: view_of(outputs[number], view))
    for index, given in enumerate(builder.signature.tensors):
        if given is t:
            return _Maker(functools.partial(_argument, index))
    if view.numel == 0:
        empty = torch.inference_mode(t.is_inference())(torch.empty_strided)
        return _Maker(lambda inputs, outputs: empty(view.shape, view.strides, dtype=view.dtype, device="cpu"))
    if id(view.storage) in builder.inputs:
        return _Maker(builder.place(view).tensor)
    return _Maker((lambda inputs, outputs: t) if view.storage.tensor is t else builder.place(view).tensor)
