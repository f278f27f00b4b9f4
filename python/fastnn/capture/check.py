"""Compares a program with torch, from the same state and random numbers, before it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnn.capture.program import Program
from fastnn.capture.recorder import tensors_in

# What rounding may change is measured: the program runs a second time with every float that it reads off by
# this much, a few units in the last place, and may differ from torch by so many times what that changed. Adam
# divides a gradient by its own size, so one that is nothing but rounding error moves a parameter as far as
# any other: no fixed tolerance would do.
_NUDGE = {torch.float32: 1e-6, torch.float64: 2e-15, torch.float16: 2e-3, torch.bfloat16: 2e-2}
_TIMES = 32
# Of the largest value: what a result may be off by that does not depend on what was nudged.
_RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 1e-2, torch.bfloat16: 1e-1}


class State:
    """What a call may change, with its values at one moment."""

    def __init__(self, program: Program, inputs: list[Tensor], leaves: list[Tensor]) -> None:
        """Copy it."""
        self._optimizers = [step.optimizer for step in program.steps]
        params = [p for o in self._optimizers for group in o.param_groups for p in group["params"]]
        self._leaves = {id(p): p for p in [*leaves, *params]}
        grads = [p.grad for p in self._leaves.values() if p.grad is not None]
        self._tensors = {id(t): t for t in [*program.reached, *inputs, *self._leaves.values(), *grads]}
        self._values = [_copy(t) for t in self._tensors.values()]
        self._bases = dict(zip(self._tensors, self._values, strict=True))
        self._grads = {key: p.grad for key, p in self._leaves.items()}
        self._states = [
            [(p, dict(entries), {k: _copy(v) for k, v in entries.items() if isinstance(v, Tensor)})
             for p, entries in o.state.items()]
            for o in self._optimizers
        ]  # fmt: skip
        self._old = set(map(id, grads))
        self._dropped = set(map(id, program.dropped))
        self._generators = [(g, g.get_state()) for g in (torch.default_generator, *program.generators)]

    def restore(self) -> None:
        """Put it back."""
        for tensor, value in zip(self._tensors.values(), self._values, strict=True):
            _write(tensor, value)
        self._bases = dict(zip(self._tensors, self._values, strict=True))
        for key, leaf in self._leaves.items():
            leaf.grad = self._grads[key]
        for optimizer, states in zip(self._optimizers, self._states, strict=True):
            known = {id(p) for p, _, _ in states}
            for p in [p for p in optimizer.state if id(p) not in known]:
                del optimizer.state[p]
            for p, entries, copies in states:
                state = optimizer.state[p]
                state.clear()
                state.update(entries)
                for key, copy in copies.items():
                    _write(entries[key], copy)
        for generator, state in self._generators:
            generator.set_state(state)

    def nudge(self) -> None:
        """Move every float that the program may read by a few units in the last place."""
        for tensor in self._tensors.values():
            _nudge(tensor)
        self._bases = {key: _copy(t) for key, t in self._tensors.items()}

    def changes(self) -> list[Change]:
        """What has been changed, and by how much, in one order."""
        found = [Change(t, self._bases[key]) for key, t in self._tensors.items() if key not in self._old]
        for key, leaf in self._leaves.items():
            if leaf.grad is not None and key not in self._dropped:
                found.append(Change(leaf.grad))
        for optimizer, states in zip(self._optimizers, self._states, strict=True):
            before = {id(p): copies for p, _, copies in states}
            for p, entries in optimizer.state.items():
                copies = before.get(id(p), {})
                found.extend(
                    Change(v, copies.get(key)) for key, v in entries.items() if isinstance(v, Tensor)
                )
        return found


class Change:
    """What became of a tensor."""

    def __init__(self, now: Tensor, before: Tensor | None = None) -> None:
        """`before` is what it was, where it was there."""
        now = now.detach()
        self.shape, self.dtype = tuple(now.shape), now.dtype
        self.by = now.double() if before is None else now.double() - before.double()
        self.rounding = 0.0
        if now.is_floating_point() and now.numel() and before is not None:
            self.rounding = 4 * torch.finfo(now.dtype).eps * now.abs().nan_to_num(0, 0, 0).max().item()


def _copy(t: Tensor) -> Tensor:
    return t.detach().clone()


@torch.no_grad()
def _write(t: Tensor, value: Tensor) -> None:
    if not torch.equal(t.detach(), value) or t.isnan().any():
        t.detach().copy_(value)


@torch.no_grad()
def _nudge(t: Tensor) -> None:
    size = _NUDGE.get(t.dtype)
    if size is not None and t.numel():
        generator = torch.Generator().manual_seed(t.numel())
        signs = torch.randint(0, 2, t.shape, generator=generator).to(t.dtype) * 2 - 1
        t.detach().mul_(1 + size * signs)


def compare(
    program: Program, arguments: tuple[Any, Any], leaves: list[Tensor], eager: Callable[[], Any]
) -> tuple[Any, str | None] | None:
    """Run the program, and then `eager` from the same state.

    Returns:
        What `eager` returned, and None or where the program differs. The state is what `eager` left. None,
        with nothing done, where the program is not for this call.
    """
    inputs = list(tensors_in(arguments))
    before = State(program, inputs, leaves)
    try:
        first = _outcome(program, arguments, before)
        before.restore()
        again = _outcome(program, arguments, before)
        before.restore()
        before.nudge()
        nudged = _outcome(program, arguments, before)
    finally:
        before.restore()
    if first is None or again is None or nudged is None:
        return None
    result = eager()
    expected = [Change(t) for t in tensors_in(result)] + before.changes()
    return result, _difference(first, again, nudged, expected)


def _outcome(program: Program, arguments: tuple[Any, Any], state: State) -> list[Change] | None:
    result = program.native.run(arguments)
    if result is NotImplemented:
        return None
    return [Change(t) for t in tensors_in(result)] + state.changes()


def _difference(
    first: list[Change], again: list[Change], nudged: list[Change], expected: list[Change]
) -> str | None:
    if not len(first) == len(again) == len(nudged) == len(expected):
        return "the program leaves other tensors than torch"
    for i, (a, b, c, e) in enumerate(zip(first, again, nudged, expected, strict=True)):
        if (a.shape, a.dtype) != (e.shape, e.dtype):
            return f"result {i} is {a.dtype} {a.shape}, torch's {e.dtype} {e.shape}"
        if not torch.equal(a.by.nan_to_num(), b.by.nan_to_num()):
            return f"result {i} differs from run to run"
        wrong = _too_far(a, c, e)
        if wrong:
            return f"result {i} of shape {a.shape} differs from torch's by {wrong:.3g}"
    return None


def _too_far(a: Change, nudged: Change, expected: Change) -> float:
    """By how much `a` differs from `expected`, where that is more than it may; else 0."""
    if a.by.numel() == 0 or torch.equal(a.by, expected.by):
        return 0.0
    finite = expected.by.isfinite()
    if not torch.equal(a.by.isfinite(), finite):
        return float("inf")
    off = (a.by - expected.by)[finite].abs()
    moved = (a.by - nudged.by)[finite & nudged.by.isfinite()].abs()
    if off.numel() == 0:
        return 0.0
    allowed = _RELATIVE.get(a.dtype, 0.0) * expected.by[finite].abs().max().item() + expected.rounding
    if moved.numel():
        allowed += _TIMES * moved.max().item()
    wrong = off.max().item()
    return wrong if wrong > allowed else 0.0
