"""Whole training updates, captured by ``fastnn.capture``, against eager torch, torch.compile and JAX."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import fastnn

from ..case import OURS, Call, Case, Foreign, Workload
from ..peers import compiled
from ..programs import PROGRAMS
from ..programs.program import CHECKED_CALLS, Program, Update


def _call(program: Program, around: Callable[[Update], Update]) -> Call:
    """The update as run by one side, on weights of its own.

    Calls whose answers are compared draw the same numbers on every side.
    """
    update, arguments = program.make()
    update, calls = around(update), 0

    def call() -> Tensor:
        nonlocal calls
        if program.random and calls < CHECKED_CALLS:
            torch.manual_seed(calls)
            calls += 1
        return update(*arguments)

    return call


def _compiled(program: Program) -> Call:
    import torch._dynamo
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    inductor.fallback_random = True  # uses torch's generator, so that answers can be compared
    return _call(program, torch.compile)


def _build(program: Program) -> Workload:
    return Workload(
        {OURS: _call(program, fastnn.capture), "torch": _call(program, lambda update: update)},
        tolerance=program.tolerance,
        checked_calls=CHECKED_CALLS,
        optional={compiled.NAME: lambda: _compiled(program)},
        foreign=Foreign(program.twin, program.for_others()),
        # JAX draws other numbers, scikit-learn other initial weights.
        learners=frozenset({"JAX"} if program.random and program.learns else {"scikit-learn"}),
    )


CASES = [
    Case(
        "program",
        program.name,
        partial(_build, program),
        flops=program.flops,
        note=f"{OURS} is fastnn.capture of the update",
        quick=program.quick,
        group="programs",
    )
    for program in PROGRAMS
]
