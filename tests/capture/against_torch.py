"""Compares native results of recorded ops with torch's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnn._dispatch import Unsupported
from fastnn.capture.lowering.table import RULES
from one_op import Native


class _Once:
    """An op that remembers what it returned."""

    def __init__(self, op: Any) -> None:
        self.op, self._schema, self._overloadname = op, op._schema, op._overloadname
        self.returned: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.returned.append(self.op(*args, **kwargs))
        return self.returned[0]


class Covered(Native):
    """Like `Native`, but an op without a rule, or that its rule refuses, is only run by torch."""

    def __init__(self) -> None:
        super().__init__()
        self.uncovered: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        once, name = _Once(func), f"{func._schema.name.removeprefix('aten::')}.{func._overloadname}"
        if name not in RULES:
            self.uncovered[name] += 1
            return func(*args, **(kwargs or {}))
        seen = len(self.results)
        try:
            out = super().__torch_dispatch__(once, types, args, kwargs)
            if len(self.results) > seen:  # later ops may write to what this one returned
                self.results[-1] = (name, _frozen(out), self.results[-1][2])
            return out
        except Unsupported as error:
            self.refused[f"{func}: {error}"] += 1
        return once.returned[0] if once.returned else func(*args, **(kwargs or {}))


def _frozen(x: Any) -> Any:
    if isinstance(x, Tensor):
        memory = x.untyped_storage().clone()
        return torch.empty(0, dtype=x.dtype).set_(memory, x.storage_offset(), x.shape, x.stride())
    return [_frozen(e) for e in x] if isinstance(x, (list, tuple)) else x


def assert_as_torch(
    run: Callable[[], Any], op: str, *, exact: bool = True, rounding: float = 4.0
) -> list[tuple[str, Any, Any]]:
    """Native results of all ops with rules must be torch's, `op` among them.

    Bit for bit, or within that many rounding units of the largest value, or of 1.
    """
    with Covered() as mode:
        run()
    assert any(name.startswith(op) for name, *_ in mode.results), (mode.refused, mode.uncovered)
    for result in mode.results:
        assert_one(*result, exact=exact, rounding=rounding)
    return mode.results


def assert_one(name: str, expected: Any, actual: Any, *, exact: bool, rounding: float) -> None:
    for theirs, ours in zip(_listed(expected), _listed(actual), strict=True):
        assert (theirs is None) == (ours is None), name
        if theirs is not None:
            assert_close(ours, theirs.detach(), exact=exact, rounding=rounding, name=name)


def assert_close(ours: Tensor, theirs: Tensor, *, exact: bool, rounding: float, name: str) -> None:
    assert (ours.shape, ours.stride(), ours.dtype) == (theirs.shape, theirs.stride(), theirs.dtype), name
    if exact or not theirs.is_floating_point():
        assert torch.equal(_bits(ours), _bits(theirs)), f"{name}: {ours} is not {theirs}"
        return
    finite = theirs[theirs.isfinite()]
    size = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
    tolerance = rounding * torch.finfo(theirs.dtype).eps
    torch.testing.assert_close(
        ours, theirs, rtol=tolerance, atol=tolerance * size, equal_nan=True, msg=lambda m: f"{name}: {m}"
    )


def _bits(x: Tensor) -> Tensor:
    whole = {torch.float32: torch.int32, torch.float64: torch.int64}.get(x.dtype)
    return x if whole is None else x.contiguous().view(whole)


def _listed(x: Any) -> list[Tensor | None]:
    return list(x) if isinstance(x, (list, tuple)) else [x]
