"""Hostile calls of the compiled module: an error or the right result, never a crash.

But for lazily negated views, which `_dispatch` keeps away from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from apart import PARTS, about_to_call, holds
from fastnn import _dispatch
from fastnn.ops.linear import ACTIVATIONS, torch_activation, torch_activation_gradient
from hostile_tensors import FLOATING, NO_TENSORS, SIZES, Recipe, indices, made, recipes, spoilt

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
OVERFLOWS = 60_000  # float16
HUGE = 1e6

Outputs = list[tuple[Tensor, Tensor]]  # what was written, and what should have been


class Call(NamedTuple):
    op: str
    arguments: list[Any]
    overlap: tuple[int, int, int] | None = None  # two arguments that share memory, the second so much further


def copied(t: Any) -> Any:
    """As it is before the call, in float64."""
    if isinstance(t, list):
        return [copied(each) for each in t]
    if not isinstance(t, Tensor):
        return t
    return t.detach().to(torch.float64, copy=True) if t.is_floating_point() else t.clone()


# What should be in the outputs, given the arguments, in float64; None for what is not written.


def relu_forward(x: Any, y: Any) -> Any:
    return [None, x.relu()]


def relu_backward(dy: Any, y: Any, dx: Any) -> Any:
    return [None, None, torch.ops.aten.threshold_backward(dy, y, 0)]


def linear_forward(x: Any, w: Any, b: Any, activation: Any, y: Any, z: Any) -> Any:
    product = F.linear(x, w, b)
    return [None, None, None, None, torch_activation(product, activation), product]


def linear_backward(dy: Any, saved: Any, activation: Any, x: Any, w: Any, dx: Any, dw: Any, db: Any) -> Any:
    dz = torch_activation_gradient(dy, saved, activation)
    return [
        *[None] * 5,
        None if dx is None else dz @ w,
        None if dw is None else dz.t() @ x,
        None if db is None else dz.sum(0),
    ]


def gram_forward(f: Any, scale: Any, g: Any) -> Any:
    return [None, None, f @ f.mT * scale]


def gram_backward(dg: Any, f: Any, scale: Any, df: Any) -> Any:
    return [None, None, None, (dg + dg.mT) @ f * scale]


REDUCTIONS = ("none", "mean", "sum")


def _loss(
    x: Tensor, target: Any, weight: Any, ignored: int, reduction: int, smoothing: float, z: float
) -> Any:
    target = target.long() if target.dtype == torch.uint8 else target
    options = {"ignore_index": ignored, "label_smoothing": smoothing, "reduction": REDUCTIONS[reduction]}
    if target.is_floating_point():
        del options["ignore_index"]
    from fastnn.ops.cross_entropy import cross_entropy_torch

    return cross_entropy_torch(x, target, weight, z_loss=z, **options)


def cross_entropy_forward(x: Any, target: Any, weight: Any, loss: Any, gradient: Any, *options: Any) -> Any:
    return [None, None, None, _loss(x, target, weight, *options)]


def cross_entropy_scale_gradient(gradient: Any, dy: Any, scale: Any) -> Any:
    rows = dy if dy.numel() == 1 else dy.unsqueeze(0 if gradient.dim() == 1 else 1)
    return [gradient * (rows.reshape(()) if dy.numel() == 1 else rows) * scale]


def linear_cross_entropy(
    x: Any,
    w: Any,
    b: Any,
    target: Any,
    weight: Any,
    loss: Any,
    dy: Any,
    dx: Any,
    dw: Any,
    db: Any,
    *options: Any,
) -> Any:
    logits = F.linear(x, w, b)
    return [*[None] * 5, _loss(logits, target, weight, *options[:4])]


def probe_copy(source: Any, destination: Any) -> Any:
    return [None, source]


def exp(x: Any, y: Any) -> Any:
    return [None, x.exp()]


def polyak(targets: Any, sources: Any, tau: Any) -> Any:
    return [[t.lerp(s, tau) for t, s in zip(targets, sources, strict=True)]]


def clip_grad_norm(grads: Any, max_norm: Any, only_finite: Any) -> Any:
    norm = torch.cat([g.reshape(-1) for g in grads]).norm()
    return [[g * min(float(max_norm / (norm + 1e-6)), 1.0) for g in grads]]


REFERENCES: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        *(relu_forward, relu_backward, linear_forward, linear_backward, gram_forward, gram_backward),
        *(cross_entropy_forward, cross_entropy_scale_gradient, linear_cross_entropy, probe_copy, exp),
        *(polyak, clip_grad_norm),
    )
}


@st.composite
def right_calls(draw: Any) -> Call:
    dtype = draw(st.sampled_from(FLOATING))
    m, n, k = draw(SIZES), draw(SIZES), draw(SIZES)

    def given_(*shape: int) -> Any:
        return draw(recipes(shape, dtype))

    def dense(*shape: int, of: torch.dtype = dtype) -> Any:
        return draw(recipes(shape, of, ("contiguous", "misaligned", "guarded after", "guarded before")))

    def perhaps(t: Any) -> Any:
        return t if draw(st.booleans()) else None

    op = draw(st.sampled_from([*REFERENCES]))
    activation = draw(st.sampled_from(ACTIVATIONS))
    if op in ("relu_forward", "probe_copy", "exp"):
        arguments = [dense(m, n), dense(m, n)]
    elif op == "relu_backward":
        arguments = [dense(m, n), dense(m, n), dense(m, n)]
    elif op == "linear_forward":
        arguments = [given_(m, k), given_(n, k), perhaps(given_(n)), activation]
        arguments += [dense(m, n), perhaps(dense(m, n))]
    elif op == "linear_backward":
        arguments = [given_(m, n), None if activation is None else given_(m, n), activation]
        arguments += [given_(m, k), given_(n, k)]
        arguments += [perhaps(dense(m, k)), perhaps(dense(n, k)), perhaps(dense(n))]
    elif op == "gram_forward":
        arguments = [given_(2, n, k), draw(st.sampled_from([1.0, 0.5])), dense(2, n, n)]
    elif op == "gram_backward":
        arguments = [given_(2, n, n), given_(2, n, k), draw(st.sampled_from([1.0, 0.5])), dense(2, n, k)]
    elif op == "cross_entropy_scale_gradient":
        arguments = [dense(m, n), perhaps(dense(m)) or dense(), draw(st.sampled_from([1.0, 0.25]))]
    elif op in ("cross_entropy_forward", "linear_cross_entropy"):
        reduction = draw(st.sampled_from([0, 1, 2]))
        classes = draw(indices((m,), n, draw(st.sampled_from([torch.int64, torch.uint8]))))
        loss = dense(m) if reduction == 0 else dense()
        options = [draw(st.sampled_from([-100, 0, 1])), reduction, draw(st.sampled_from([0.0, 0.1]))]
        options.append(draw(st.sampled_from([0.0, 1e-3])))
        if op == "cross_entropy_forward":
            target = classes if draw(st.booleans()) else dense(m, n)
            arguments = [given_(m, n), target, perhaps(dense(n)), loss, perhaps(dense(m, n)), *options]
        else:
            sums = torch.float64 if dtype == torch.float64 else torch.float32
            bias = perhaps(given_(n))
            arguments = [given_(m, k), given_(n, k), bias, classes, perhaps(dense(n)), loss]
            arguments += [dense(m) if reduction == 0 else None]
            arguments += [perhaps(dense(m, k, of=sums)), perhaps(dense(n, k, of=sums))]
            arguments += [None if bias is None else perhaps(dense(n, of=sums)), *options]
            arguments.append(draw(st.sampled_from([1, 3, 64])))
    else:
        shapes = draw(st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=3))
        arguments = [[dense(*shape) for shape in shapes]]
        if op == "polyak":
            arguments += [[dense(*shape) for shape in shapes], draw(st.sampled_from([0.1, 0.6]))]
        else:
            arguments += [draw(st.sampled_from([1.0, 1e9])), draw(st.booleans())]
    return Call(op, arguments)


@st.composite
def calls(draw: Any) -> Call:
    """A right call; or one with arguments spoilt, missing, too many, or sharing memory."""
    op, arguments, _ = draw(right_calls())
    how = draw(
        st.sampled_from(["right", "spoilt", "spoilt", "twice spoilt", "fewer", "more", "overlap", "overlap"])
    )
    places = [i for i, a in enumerate(arguments) if isinstance(a, Recipe)]
    if how == "overlap" and len(places) >= 2:
        one, other = draw(st.permutations(places))[:2]
        return Call(op, arguments, (one, other, draw(st.sampled_from([0, 0, 1, 3]))))
    for _ in range({"spoilt": 1, "twice spoilt": 2}.get(how, 0)):
        place = draw(st.integers(0, len(arguments) - 1))
        value = arguments[place]
        if isinstance(value, list) and value:
            within = draw(st.integers(0, len(value) - 1))
            if isinstance(value[within], Recipe):
                arguments[place] = [*value[:within], draw(spoilt(value[within])), *value[within + 1 :]]
        else:
            arguments[place] = draw(spoilt(value) if isinstance(value, Recipe) else NO_TENSORS)
    if how == "fewer":
        del arguments[draw(st.integers(0, len(arguments) - 1))]
    elif how == "more":
        arguments.insert(draw(st.integers(0, len(arguments))), draw(NO_TENSORS))
    return Call(op, arguments)


def make_all(call: Call) -> list[Any]:
    arguments = made(call.arguments)
    if call.overlap is not None:
        one, other, further = call.overlap
        a, b = arguments[one], arguments[other]
        further *= b.element_size()
        size = max(a.nbytes, b.nbytes + further)
        whole = torch.zeros(size + 16, dtype=torch.uint8)
        for place, t, first in ((one, a, 0), (other, b, further)):
            arguments[place] = whole[first : first + t.nbytes].view(t.dtype).view(t.shape).copy_(t.detach())
    return arguments


def pairs(actual: Any, expected: Any) -> Outputs:
    if isinstance(actual, Tensor) and isinstance(expected, Tensor):
        return [(actual, expected)]
    if isinstance(actual, list) and isinstance(expected, list):
        return [pair for a, e in zip(actual, expected, strict=False) for pair in pairs(a, e)]
    return []


@given(calls())
def an_error_or_the_right_result(call: Call) -> None:
    about_to_call(call)
    arguments = make_all(call)
    given_ = copied(arguments)
    module = _dispatch.cpu.testing if call.op == "exp" else _dispatch.cpu
    try:
        done = getattr(module, call.op)(*arguments)
    except (RuntimeError, TypeError, ValueError, IndexError, BufferError, OverflowError, NotImplementedError):
        return
    if isinstance(done, str) or any(isinstance(a, (int, float)) and abs(a) > HUGE for a in arguments):
        return  # says why torch must do it; or a number with which float64 overflows too
    for actual, expected in pairs(arguments, REFERENCES[call.op](*given_)):
        tolerance = TOLERANCES.get(actual.dtype, 0.0)
        finite = expected[expected.isfinite()]
        scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
        if actual.dtype == torch.float16 and scale > OVERFLOWS:
            return
        torch.testing.assert_close(
            actual.detach().double(), expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True
        )
    assert not isinstance(done, float) or not math.isinf(done)


@pytest.mark.parametrize(("calls", "seed"), PARTS)
def test_hostile_calls_of_bindings(calls: int, seed: int, tmp_path: Path) -> None:
    holds(an_error_or_the_right_result, calls, seed, tmp_path)
