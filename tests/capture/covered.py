"""Runs ops with rules both natively and in torch, and compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import fastnn.capture.lowering.activations
import fastnn.capture.lowering.copies
import fastnn.capture.lowering.elementwise
import fastnn.capture.lowering.foreach
import fastnn.capture.lowering.losses
import fastnn.capture.lowering.reductions
import fastnn.capture.lowering.statistics  # noqa: F401 (rules register themselves)
from fastnn._dispatch import Unsupported
from fastnn.capture.lowering.table import RULES
from one_op import Native


class Covered(Native):
    """Like Native, but ops without a rule and those that a rule refuses only run as torch's; ``refused`` has
    their names and reasons."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = f"{func._schema.name.removeprefix('aten::')}.{func._overloadname}"
        if name not in RULES:
            self.refused.append((name, "no rule"))
            return func(*args, **(kwargs or {}))
        seen = len(self.results)
        try:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        except Unsupported as reason:
            self.refused.append((name, str(reason)))
            if func._schema.is_mutable:  # it has already been run
                return (kwargs or {}).get("out", args[0])
            return func(*args, **(kwargs or {}))
        if len(self.results) == seen:
            return result
        _, expected, found = self.results.pop()
        if expected is None:  # in-place ops on lists
            return result
        self.results.append((name, _copy(expected), found))  # later ops may write to the expected tensors
        return result


def _copy(result: Any) -> Any:
    if isinstance(result, (list, tuple)):
        return [_copy(part) for part in result]
    return result.clone() if isinstance(result, torch.Tensor) else result


def compare(mode: Native, rtol: float | None = None, atol: float | None = None) -> None:
    """Compare native results with torch's."""
    for name, expected, found in mode.results:
        assert_same(name, expected, found, rtol, atol)


def assert_same(
    name: str, expected: Any, found: Any, rtol: float | None = None, atol: float | None = None
) -> None:
    if isinstance(expected, (list, tuple)):
        for e, f in zip(expected, found, strict=True):
            assert_same(name, e, f, rtol, atol)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(
            found, expected, equal_nan=True, rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}"
        )


def check_native(
    run: Callable[[], Any], *names: str, rtol: float | None = None, atol: float | None = None
) -> None:
    """Check that `run` is computed natively as in torch, including these ops."""
    with Covered() as mode:
        run()
    native = [name for name, _, _ in mode.results]
    for name in names:
        assert name in native, (name, native, mode.refused)
    compare(mode, rtol, atol)
