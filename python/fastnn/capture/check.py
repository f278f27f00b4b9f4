"""Compares a program with torch, from the same state and random numbers, before it is used."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastnn._torch_internals import STEP_HOOKS
from fastnn.capture.contents import Contents
from fastnn.capture.ir import Storage
from fastnn.capture.program import Program
from fastnn.capture.tape import as_view, parameters_of, replace, tensors_in

# The effect of rounding is measured: the program, and the same program made of torch's ops, which may be the
# less accurate one, run again with every float they read perturbed by a few units in the last place
# (`_ROUNDING`). The program may differ from torch by `_TIMES` the resulting change. Adam divides a gradient
# by its own size, so pure rounding error moves a parameter as far as any gradient: no fixed tolerance works.
_TIMES = 64
# For each run, whether it is the program or its twin of torch's ops, and the seed of the perturbation. The
# first two runs must agree; the last four measure, and are skipped if the third differs from the first by
# less than half of what rounding may change in any function.
_RUNS: tuple[tuple[bool, int | None], ...] = (
    (True, None),
    (True, None),
    (False, None),
    (True, 0),
    (True, 1),
    (False, 0),
    (False, 1),
)
_UNMEASURED = 3
_CLOSE = 0.5
# The relative perturbation of floats, and the error of a result, relative to the largest value, that is
# allowed whatever the perturbation changed.
_ROUNDING = {
    torch.float32: (1e-6, 1e-5),
    torch.float64: (2e-15, 1e-12),
    torch.float16: (2e-3, 1e-2),
    torch.bfloat16: (2e-2, 1e-1),
    torch.complex64: (1e-6, 1e-5),
    torch.complex128: (2e-15, 1e-12),
}
# For what no optimizer has made, the change of this quantile of the elements is allowed to every element: if
# a few jump, as the results of a floor may, only these may differ by that much.
_TYPICAL = 0.9
_OF_NO_OPTIMIZER = ("result", "gradient")
_GENERATOR = "generator"
_SETS_STATES = (
    "it leaves a random generator in another state than a replay does, as torch.manual_seed and "
    "torch.random.fork_rng do: call these outside"
)
_FOUND = "the self-check found a difference"


class State:
    """What a call may change, with its values at one moment."""

    def __init__(self, program: Program, inputs: list[Tensor], leaves: list[Tensor]) -> None:
        """Copy the state."""
        self._optimizers = [step.optimizer for step in program.steps]
        params = [p for o in self._optimizers for p in parameters_of(o)]
        self._leaves = {id(p): p for p in [*leaves, *params]}
        grads = [p.grad for p in self._leaves.values() if p.grad is not None]
        self._tensors = {id(t): t for t in [*program.reached, *inputs, *self._leaves.values(), *grads]}
        self._values = [_copy(t) for t in self._tensors.values()]
        self._bases = dict(zip(self._tensors, self._values, strict=True))
        self._grads = {key: p.grad for key, p in self._leaves.items()}
        # Some optimizers count in their attributes or among their options, or keep lists.
        self._contents = Contents([o.__dict__ for o in self._optimizers], self._tensors.values())
        self._kept = {id(t): (t, _copy(t)) for t in self._contents.tensors}
        copies = {**self._bases, **{key: copy for key, (_, copy) in self._kept.items()}}
        self._states = [
            {(id(p), key): copies.get(id(v)) for p, key, v in _entries(o)} for o in self._optimizers
        ]
        self._old = set(map(id, grads))
        self._dropped = set(map(id, program.dropped))
        self._generators = [(g, g.get_state()) for g in (torch.default_generator, *program.generators)]

    def restore(self) -> None:
        """Restore the state."""
        for tensor, value in zip(self._tensors.values(), self._values, strict=True):
            _write(tensor, value)
        self._bases = dict(zip(self._tensors, self._values, strict=True))
        for key, leaf in self._leaves.items():
            leaf.grad = self._grads[key]
        self._contents.restore()
        for tensor, value in self._kept.values():
            _write(tensor, value)
        for generator, state in self._generators:
            generator.set_state(state)

    def nudge(self, seed: int) -> None:
        """Move every float that the program may read by a few units in the last place."""
        generator = torch.Generator().manual_seed(seed)
        for tensor in self._tensors.values():
            _nudge(tensor, generator)
        self._bases = {key: _copy(t) for key, t in self._tensors.items()}

    def changes(self) -> list[Change]:
        """What has changed, and by how much, in a fixed order."""
        found = [
            Change("memory", t, self._bases[key]) for key, t in self._tensors.items() if key not in self._old
        ]
        for key, leaf in self._leaves.items():
            if leaf.grad is not None and key not in self._dropped:
                found.append(Change("gradient", leaf.grad))
        for optimizer, states in zip(self._optimizers, self._states, strict=True):
            found.extend(Change(str(key), v, states.get((id(p), key))) for p, key, v in _entries(optimizer))
        found.extend(Change(_GENERATOR, generator.get_state()) for generator, _ in self._generators)
        return found


class Change:
    """The change of a tensor; its size is judged among those of the same ``kind``."""

    def __init__(self, kind: str, now: Tensor, before: Tensor | None = None) -> None:
        """`before` is its former value, if it existed."""
        self.kind = kind
        now = now.detach()
        self.shape, self.dtype = tuple(now.shape), now.dtype
        self.by = _wide(now) if before is None else _wide(now) - _wide(before)
        self._now = None if before is None else now

    def rounding(self) -> float:
        """The effect of rounding the tensor itself, as long as it still has that value."""
        if self._now is None or self.dtype not in _ROUNDING:
            return 0.0
        return 4 * torch.finfo(self.dtype).eps * _size(self._now)


def _wide(t: Tensor) -> Tensor:
    if t.is_complex():
        return t.to(torch.complex128)
    return t.double() if t.is_floating_point() else t.long()


def _copy(t: Tensor) -> Tensor:
    return t.detach().clone()


def _entries(optimizer: Optimizer) -> Iterator[tuple[Any, Any, Tensor]]:
    """The tensors in an optimizer's state, each with its parameter and its name."""
    for p, entries in optimizer.state.items():
        for key, v in entries.items() if isinstance(entries, dict) else ():
            if isinstance(v, Tensor):
                yield p, key, v


@contextmanager
def _without_hooks(optimizers: list[Optimizer]) -> Iterator[None]:
    """Step hooks are not called in this block."""
    before = [(o, name, o.__dict__[name]) for o in optimizers for name in STEP_HOOKS]
    try:
        for o, name, hooks in before:
            if hooks:
                o.__dict__[name] = OrderedDict()
        yield
    finally:
        for o, name, hooks in before:
            o.__dict__[name] = hooks


@torch.no_grad()
def _write(t: Tensor, value: Tensor) -> None:
    if not torch.equal(t.detach(), value):
        t.data.copy_(value)  # does not bump the version: live graphs stay valid


@torch.no_grad()
def _nudge(t: Tensor, generator: torch.Generator) -> None:
    if t.dtype in _ROUNDING and t.numel():
        size, _ = _ROUNDING[t.dtype]
        signs = torch.randint(0, 2, t.shape, generator=generator, device="cpu").to(t.dtype) * 2 - 1
        # Whole numbers are exact, and they are where functions such as floor jump.
        t.data.mul_(1 + size * signs * (t != t.round() if t.is_floating_point() else 1))


def _nudged(arguments: tuple[Any, Any], untouched: list[Tensor], seed: int) -> tuple[Any, Any]:
    """The arguments, with perturbed copies of those that the function does not write."""
    generator = torch.Generator().manual_seed(seed)
    by: dict[int, Any] = {id(t): t for t in tensors_in(arguments)}
    memory = [t.untyped_storage().data_ptr() for t in by.values()]
    for t in untouched:
        if memory.count(t.untyped_storage().data_ptr()) == 1 and as_view(t, Storage(0)).is_dense:
            by[id(t)] = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu").copy_(t)
            _nudge(by[id(t)], generator)
    args, kwargs = replace(arguments, Tensor, lambda t: by[id(t)])
    return args, kwargs


def compare(
    program: Program, arguments: tuple[Any, Any], leaves: list[Tensor], eager: Callable[[], Any]
) -> tuple[Any, str | None] | None:
    """Run the program, and then `eager` from the same state.

    Returns:
        What `eager` returned, and None if the program is ready for use, else where it differs. The state is
        the one that `eager` left. None, with nothing done, if the program is not for this call.
    """
    given = [t for t in tensors_in(arguments) if not (t.requires_grad and t.is_leaf)]
    inputs = [given[i] for i in program.written_inputs]
    before = State(program, inputs, leaves)
    untouched = [t for i, t in enumerate(given) if i not in program.written_inputs]
    runs: list[list[Change]] = []
    optimizers = [step.optimizer for step in program.steps]
    raised: str | None = None
    try:
        for native, seed in _RUNS:
            called = arguments
            if seed is not None:
                before.nudge(seed)
                called = _nudged(arguments, untouched, seed)
            with _without_hooks(optimizers):
                outcome = _outcome(program.native if native else program.reference, called, before)
            before.restore()
            if outcome is None:
                return None
            runs.append(outcome)
            if len(runs) == _UNMEASURED and _difference(runs, outcome, _CLOSE) is None:
                break
    except Exception as error:  # e.g. an index out of range: torch's message is better
        raised = f"{_FOUND}: the program raises {type(error).__name__}: {error}"
    finally:
        before.restore()
    result = eager()
    if raised is not None:
        return result, raised
    hooked = any(o.__dict__[name] for o in optimizers for name in STEP_HOOKS)
    expected = [Change("result", t) for t in tensors_in(result)] + before.changes()
    difference = _difference(runs, expected)
    if difference is None:
        program.checked, program.reference = True, None
        return result, None
    if difference != _SETS_STATES:
        difference += (
            "; it may read something that changes from call to call, such as a counter or NumPy's random "
            "numbers: pass that as an argument"
        )
    if hooked:
        difference += "; hooks of the optimizer's step, which the comparison does not call, may be the reason"
    return result, f"{_FOUND}: {difference}"


def _outcome(native: Any, arguments: tuple[Any, Any], state: State) -> list[Change] | None:
    result = native.run(arguments)
    if result is NotImplemented:
        return None
    return [Change("result", t) for t in tensors_in(result)] + state.changes()


def _difference(runs: list[list[Change]], expected: list[Change], part: float = 1.0) -> str | None:
    if any(len(run) != len(expected) for run in runs):
        return "the program leaves different tensors than torch"
    largest: dict[str, float] = {}
    for e in expected:
        largest[e.kind] = max(largest.get(e.kind, 0.0), _size(e.by))
    numbered = list(enumerate(zip(expected, *runs, strict=True)))
    numbered.sort(key=lambda each: each[1][0].kind != _GENERATOR)  # they explain the numbers drawn
    for i, (e, *changes) in numbered:
        a, again = changes[:2]
        if (a.shape, a.dtype) != (e.shape, e.dtype):
            return f"result {i} is {a.dtype} {a.shape}, torch's {e.dtype} {e.shape}"
        if not (torch.equal(a.by, again.by) or torch.equal(a.by.nan_to_num(), again.by.nan_to_num())):
            return f"result {i} differs from run to run"
        wrong = _too_far(e, changes, largest[e.kind], part)
        if wrong and e.kind == _GENERATOR:
            return _SETS_STATES
        if wrong:
            return f"{a.kind} {i} of shape {a.shape} differs from torch's by {wrong:.3g}"
    return None


def _sizes(t: Tensor) -> Tensor:
    return t.abs().double().nan_to_num(0, 0, 0)


def _size(t: Tensor) -> float:
    return _sizes(t).max().item() if t.numel() else 0.0


def _too_far(expected: Change, changes: list[Change], largest: float, part: float) -> float:
    """The largest difference from what is expected that exceeds what is allowed, or `part` of that if the
    effect of rounding was not measured; else 0."""
    first = changes[0]
    if first.by.numel() == 0 or torch.equal(first.by, expected.by):
        return 0.0
    nowhere = ~(first.by.isfinite() & expected.by.isfinite())
    if not torch.allclose(first.by[nowhere], expected.by[nowhere], equal_nan=True):
        return float("inf")
    fixed = expected.rounding()
    if first.dtype in _ROUNDING:
        _, relative = _ROUNDING[first.dtype]
        # Sums that cancel to zero leave rounding error of the size of their terms.
        fixed += relative * _size(expected.by) + 64 * torch.finfo(first.dtype).eps * largest
    wrong = _sizes(first.by - expected.by)
    if len(changes) == _UNMEASURED or wrong.max() <= fixed:
        return _size(wrong[wrong > part * fixed])
    allowed = torch.full(first.shape, fixed, dtype=torch.float64, device="cpu")
    share = _TYPICAL if expected.kind in _OF_NO_OPTIMIZER else 1.0
    for native in (True, False):
        own = [c.by for c, (is_native, _) in zip(changes, _RUNS, strict=True) if is_native is native]
        moved = torch.stack([_sizes(own[0] - other) for other in own[1:]]).amax(0)
        if share == 1:  # the largest, found faster
            allowed += _TIMES * moved.max()
        else:
            typical = moved.flatten().kthvalue(math.ceil(share * moved.numel())).values
            allowed += _TIMES * moved.clamp_min(typical)
    return _size(wrong[wrong > allowed])
