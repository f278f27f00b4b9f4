"""The outcome of a hostile call: the same with fastnn as with torch, the type of an error or values."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastnn
from apart import about_to_call
from hostile_tensors import made

# For sums of at most 33 products of numbers around 1.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


class Call(NamedTuple):
    op: str
    arguments: dict[str, Any]
    # The original arguments, if one of them was corrupted; empty if two were.
    right: dict[str, Any] | None = None


Ops = dict[str, Callable[..., Any]]


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for each in value for t in tensors_in(each)] if isinstance(value, (list, tuple)) else []


def outcome(ops: Ops, call: Call) -> type[Exception] | list[Tensor]:
    """The error of a call, or its results, and the gradients of its arguments."""
    arguments = {name: made(value) for name, value in call.arguments.items()}
    given = tensors_in(list(arguments.values()))
    try:
        results = tensors_in(ops[call.op](**arguments))
        for result in results:
            if result.grad_fn is not None and result.is_floating_point():
                result.backward(torch.ones_like(result), retain_graph=True)
    except Exception as error:
        return type(error)
    gradients = [t.grad for t in given if t.is_leaf and t.grad is not None]
    return [t.detach() for t in (*results, *gradients)]


def _has_two_faults(ops: Ops, call: Call) -> bool:
    """It is unspecified which of them is reported first."""
    if call.right is None:
        return False
    return not call.right or not isinstance(outcome(ops, Call(call.op, call.right)), list)


def _excused(call: Call, ours: Tensor, theirs: Tensor) -> Tensor:
    """Where torch returns NaN and fastnn the limit: GELU of infinity, the gradient of an ignored row."""
    if call.op in ("cross_entropy", "linear_cross_entropy", "construct"):
        return theirs.isnan() & (ours == 0)
    activations = [call.arguments.get("activation"), *(call.arguments.get("activations") or ())]
    return theirs.isnan() if "gelu" in activations else torch.zeros_like(theirs, dtype=torch.bool)


def assert_same(ours: Any, theirs: Any, call: Call) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)
        if b.device.type == "meta" or b.layout is not torch.strided:
            continue
        a = torch.where(_excused(call, a, b), b, a)
        tolerance = TOLERANCES.get(b.dtype, 1e-4 if b.is_complex() else 0.0)
        finite = b[b.isfinite()] if tolerance else b.new_empty(0)
        scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def check(ops: Ops, call: Call) -> None:
    """Call one of `ops` with fastnn and, with it disabled, with torch."""
    about_to_call(call)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = outcome(ops, call)
        with fastnn.disabled():
            theirs = outcome(ops, call)
        if isinstance(ours, list) and isinstance(theirs, list):
            assert_same(ours, theirs, call)
        else:
            assert isinstance(ours, list) == isinstance(theirs, list), (ours, theirs)
            assert ours is theirs or _has_two_faults(ops, call), (ours, theirs)
