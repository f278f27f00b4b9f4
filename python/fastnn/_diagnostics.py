"""Report which ops a piece of code ran and where, and what unexpectedly runs eagerly."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastnn import _dispatch
from fastnn._dispatch import Conversion, Decision

_HERE = f"{Path(__file__).parent}{os.sep}"


class EagerStepWarning(UserWarning):
    """A :class:`TrainStep` or a captured function runs eagerly; each gives one warning for each reason.

    ``warnings.filterwarnings("ignore", category=fastnn.EagerStepWarning)`` silences it.
    """


def levels_out() -> int:
    """The stack level for a warning of the calling function: that of the first caller outside fastnn."""
    frame, levels = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame, levels = frame.f_back, levels + 1
    return levels


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` saw; ``str()`` of it is a table, or two.

    Attributes:
        result: what the function returned.
        decisions: one entry for each call of an op, in order: ``op``, and ``reason``, which says why torch
            ran it and is None for a native kernel.
        conversions: one entry for each module or optimizer that ``convert`` or ``revert`` met, in order:
            ``name`` in the model, ``kind`` (the class that it had), ``became`` (the class that it has now,
            None if it was left alone), and ``note``: why it was left alone, or what in it fuses.
        programs: what a captured function has recorded, the last used first; see :func:`fastnn.capture`.
    """

    result: Any
    decisions: tuple[Decision, ...]
    conversions: tuple[Conversion, ...] = ()
    programs: tuple[Any, ...] = ()

    def __str__(self) -> str:
        tables = []
        if self.conversions:
            made = [(c.name or "(root)", c.kind, c.became or "-", c.note) for c in self.conversions]
            tables.append(table([("name", "class", "became", "why not, or what fuses"), *made]))
        if self.decisions:
            counted = [
                (op, str(calls), "native" if reason is None else "torch", reason or "")
                for (op, reason), calls in Counter(self.decisions).items()
            ]
            tables.append(table([("op", "calls", "ran on", "why not natively"), *counted], right=1))
        if len(self.programs) > 1:  # several may be for the same arguments
            tables.append("recordings, the last used first:")
        tables.extend(str(program) for program in self.programs)
        return "\n\n".join(tables) or "no fastnn op ran"


def counted(number: int, noun: str) -> str:
    """The number with its noun, given in the singular."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def table(rows: Sequence[tuple[str, ...]], right: int | None = None) -> str:
    """Lines of the rows in columns; the one with the number `right` is right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column == right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def explain(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Run ``fn(*args, **kwargs)`` and report which fastnn ops ran natively, and why others did not.

    ``explain(fastnn.convert, model)`` reports what became of each module, why others stayed, and which
    layers of a ``Sequential`` run as one op when it is called. Backward ops that run inside `fn` are
    reported too, and so are ops that other threads run at the same time. For a captured function it shows
    the recordings, the last used first: how many instructions and fused groups they have, which ops torch
    runs and why, how much memory they use, and whether they have been compared with torch.

    Args:
        fn: anything callable, such as a model or one step of a training loop.
        args: passed to `fn`.
        kwargs: passed to `fn`.

    Returns:
        :class:`Explanation`; print it to see a table.

    Raises:
        TypeError: `fn` is not callable.
        Exception: whatever `fn` raises.
    """
    given: Any = fn
    if not callable(given):
        raise TypeError(
            "explain: expected a function and its arguments, as in explain(step, x, y), got "
            f"{type(given).__name__}"
        )
    seen: list[Decision | Conversion] = []

    def see(what: Decision | Conversion) -> None:  # torch.compile of torch 2.10 takes no bound method of list
        seen.append(what)

    with _dispatch.recording(see):
        result = fn(*args, **kwargs)
    return Explanation(
        result,
        tuple(entry for entry in seen if isinstance(entry, Decision)),
        tuple(entry for entry in seen if isinstance(entry, Conversion)),
        getattr(fn, "programs", ()),
    )
