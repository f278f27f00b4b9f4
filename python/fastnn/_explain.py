"""Tell which ops a piece of code ran, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fastnn import _backend, _functional
from fastnn._backend import Decision


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` saw; ``str()`` of it is a table.

    Attributes:
        result: what the function returned.
        decisions: one entry for each call of an op, in order: ``op``, and ``reason``, which is None for a
            native kernel and else says why torch ran it.
    """

    result: Any
    decisions: tuple[Decision, ...]

    def __str__(self) -> str:
        if not self.decisions:
            return "no fastnn op ran"
        rows = [("op", "calls", "ran on", "why not natively")]
        for (op, reason), calls in Counter(self.decisions).items():
            rows.append((op, str(calls), "native" if reason is None else "torch", reason or ""))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            f"{op:<{widths[0]}}  {calls:>{widths[1]}}  {where:<{widths[2]}}  {why}".rstrip()
            for op, calls, where, why in rows
        )


def explain(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Run ``fn(*args, **kwargs)`` and report which fastnn ops ran natively, and why others did not.

    Where `fn` is a model, what kept :func:`fastnn.convert` from fusing a forward in it comes first. Backward
    ops that run inside `fn` are reported too. Ops that other threads run meanwhile are mixed in.

    Args:
        fn: anything callable, such as a model or one step of a training loop.
        args: passed to `fn`.
        kwargs: passed to `fn`.

    Returns:
        :class:`Explanation`; print it to see a table.

    Raises:
        Whatever `fn` raises.
    """
    decisions: list[Decision] = []
    if isinstance(fn, torch.nn.Module):
        decisions += [_functional.refused[module] for module in fn.modules() if module in _functional.refused]
    with _backend.recording(decisions.append):
        result = fn(*args, **kwargs)
    return Explanation(result, tuple(decisions))
