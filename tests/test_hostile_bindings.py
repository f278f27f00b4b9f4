"""Hostile calls of the compiled module: an error or the right result, never a crash.

Except for lazily negated views, which `_dispatch` keeps away from most of it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from apart import PARTS, about_to_call, holds
from binding_references import OPTIMIZERS, REFERENCES, ROUNDING, copied, has_bad_index, norm_of
from fastnn import _dispatch
from fastnn.ops.linear import ACTIVATIONS
from fastnn.optim.native import match_layout
from hostile_tensors import FLOATING, NO_TENSORS, SIZES, Recipe, finite, indices, made, recipes, spoilt

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
OVERFLOWS = 60_000  # float16
HUGE = 1e6
DENSE = ("contiguous", "misaligned", "guarded after", "guarded before")
LOOK_FOR_NEGATED = ("clip_grad_norm", *OPTIMIZERS)
LOSSES = ("cross_entropy_forward", "linear_cross_entropy")

Outputs = list[tuple[Tensor, Tensor]]  # what was written, and what should have been
Place = tuple[int, ...]  # of an argument, or of an element of a list among them


class Call(NamedTuple):
    op: str
    arguments: list[Any]
    right: bool = False
    overlap: tuple[Place, Place, int] | None = (
        None  # two tensors that share memory, the second at this offset
    )


@st.composite
def right_calls(draw: Any) -> Call:
    """With layouts and shapes allowed by the op's contract."""
    op = draw(st.sampled_from([*REFERENCES]))
    dtype = draw(st.sampled_from(FLOATING[:2] if op in ("bernoulli", "probe_fma") else FLOATING))
    sizes = SIZES.filter(bool) if op.startswith(("cross", "linear_cross")) else SIZES
    m, n, k = draw(sizes), draw(sizes), draw(sizes)

    def given_(*shape: int) -> Any:
        return draw(recipes(shape, dtype))

    def dense(*shape: int, of: torch.dtype = dtype) -> Any:
        return draw(recipes(shape, of, DENSE))

    def perhaps(t: Any) -> Any:
        return t if draw(st.booleans()) else None

    activation = draw(st.sampled_from(ACTIVATIONS))
    if op in ("relu_forward", "probe_copy", "exp"):
        arguments = [dense(m, n), dense(m, n)]
    elif op == "relu_backward":
        arguments = [dense(m, n), dense(m, n), dense(m, n)]
    elif op == "probe_fma":
        arguments = [draw(st.integers(1, 9)), dense(*draw(st.sampled_from([(), (1,), (1, 1)])))]
    elif op == "bernoulli":
        arguments = [dense(m, n), draw(st.sampled_from([0.0, 0.3, 1.0])), draw(st.integers(0, 9))]
    elif op == "linear_forward":
        arguments = [given_(m, k), given_(n, k), perhaps(given_(n)), activation]
        arguments += [dense(m, n), perhaps(dense(m, n))]
    elif op == "linear_backward":
        arguments = [given_(m, n), None if activation is None else given_(m, n), activation]
        arguments += [given_(m, k), given_(n, k)]
        arguments += [perhaps(dense(m, k)), perhaps(dense(n, k)), perhaps(dense(n))]
    elif op in ("mlp_forward", "mlp_backward"):
        widths = [n, *draw(st.lists(SIZES, max_size=2))]
        layers = [*zip([k, *widths[:-1]], widths, strict=True)]
        activations = [draw(st.sampled_from(ACTIVATIONS)) for _ in layers]
        weights = [given_(after, before) for before, after in layers]
        if op == "mlp_forward":
            biases = [perhaps(given_(after)) for _, after in layers]
            arguments = [given_(m, k), weights, biases, activations]
            arguments += [
                [dense(m, width) for width in widths],
                [perhaps(dense(m, width)) for width in widths],
            ]
        else:
            arguments = [given_(m, widths[-1]), given_(m, k), weights]
            arguments += [[given_(m, width) for width in widths] for _ in range(2)]
            arguments += [activations, perhaps(dense(m, k))]
            arguments += [[perhaps(dense(after, before)) for before, after in layers]]
            arguments += [[perhaps(dense(after)) for _, after in layers]]
    elif op == "gram_forward":
        arguments = [given_(2, n, k), draw(st.sampled_from([1.0, 0.5])), dense(2, n, n)]
    elif op == "gram_backward":
        arguments = [given_(2, n, n), given_(2, n, k), draw(st.sampled_from([1.0, 0.5])), dense(2, n, k)]
    elif op == "cross_entropy_scale_gradient":
        arguments = [dense(m, n), perhaps(dense(m)) or dense(), draw(st.sampled_from([1.0, 0.25]))]
    elif op in LOSSES:
        weight = finite(dense(n))
        reduction = draw(st.sampled_from([0, 1, 2]))
        classes = draw(indices((m,), n, draw(st.sampled_from([torch.int64, torch.uint8])), DENSE))
        loss = dense(m) if reduction == 0 else dense()
        options = [draw(st.sampled_from([-100, 0, 1])), reduction, draw(st.sampled_from([0.0, 0.1]))]
        options.append(draw(st.sampled_from([0.0, 1e-3])))
        if op == "cross_entropy_forward":
            target = classes if draw(st.booleans()) else finite(dense(m, n))
            logits = draw(recipes((m, n), dtype, ROWS))
            arguments = [logits, target, perhaps(weight), loss, perhaps(dense(m, n)), *options]
        else:
            sums = torch.float64 if dtype == torch.float64 else torch.float32
            bias = perhaps(given_(n))
            arguments = [given_(m, k), given_(n, k), bias, classes, perhaps(weight), loss]
            arguments += [dense(m) if reduction == 0 else None]
            arguments += [perhaps(dense(m, k, of=sums)), perhaps(dense(n, k, of=sums))]
            arguments += [None if bias is None else perhaps(dense(n, of=sums)), *options]
            arguments.append(draw(st.sampled_from([1, 3, 64])))
    else:
        shapes = draw(st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=3))

        def each(values: tuple[str, ...] = ()) -> list[Any]:
            found = [dense(*shape) for shape in shapes]
            return [replace(t, values=draw(st.sampled_from(values))) for t in found] if values else found

        arguments = [each()]
        if op == "polyak":
            arguments += [each(), draw(st.sampled_from([0.1, 0.6]))]
        elif op == "clip_grad_norm":
            arguments += [draw(st.sampled_from([1.0, 1e9])), draw(st.booleans())]
        else:
            names, options = draw(states_and_options(op))
            arguments += [each(), [draw(st.integers(0, 4)) for _ in shapes], names]
            arguments += [[each(STATE_VALUES.get(name, ("positive", "zeros"))) for name in names], options]
    return Call(op, arguments, right=True)


ROWS = (*DENSE, "rows apart")  # of classes in a row
# Second moments are not negative, and a mean of squares is no less than the square of the mean.
STATE_VALUES = {
    "exp_avg": ("normal", "special", "zeros", "small"),
    "momentum_buffer": ("normal", "special", "zeros", "small"),
    "grad_avg": ("zeros",),
}


@st.composite
def states_and_options(draw: Any, op: str) -> tuple[list[str], dict[str, Any]]:
    """The entries of an optimizer's state, and the options of its group."""
    flag = draw(st.booleans())
    options: dict[str, Any] = {
        "lr": draw(st.sampled_from([0.1, 0.0, 1.0])),
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
        "maximize": draw(st.booleans()),
    }
    if op == "adam_step":
        options |= {"betas": (0.9, 0.99), "eps": 1e-3, "amsgrad": flag}
        options["decoupled_weight_decay"] = draw(st.booleans())
        return ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if flag else [])], options
    if op == "adagrad_step":
        return ["sum"], {**options, "lr_decay": 0.1 if flag else 0.0, "eps": 1e-3}
    options["momentum"] = 0.9 if flag else 0.0
    if op == "sgd_step":
        options |= {"dampening": draw(st.sampled_from([0.0, 0.1])), "nesterov": False}
        if flag and options["dampening"] == 0:
            options["nesterov"] = draw(st.booleans())
        return ["momentum_buffer"] if flag else [], options
    centered = draw(st.booleans())
    options |= {"alpha": 0.9, "eps": 1e-3, "centered": centered}
    names = ["square_avg", *(["momentum_buffer"] if flag else []), *(["grad_avg"] if centered else [])]
    return names, options


@st.composite
def spoilt_at_one_place(draw: Any, value: Any) -> Any:
    """An argument, or one of the elements of a list or a dict, that is not what it should be."""
    if isinstance(value, list) and value:
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(spoilt_at_one_place(value[at])), *value[at + 1 :]]
    if isinstance(value, dict):
        return {**value, draw(st.sampled_from([*value])): draw(NO_TENSORS)}
    return draw(spoilt(value) if isinstance(value, Recipe) else NO_TENSORS)


def not_negated(value: Any) -> Any:
    if isinstance(value, list):
        return [not_negated(each) for each in value]
    is_negated = isinstance(value, Recipe) and value.layout == "negated"
    return replace(value, layout="contiguous") if is_negated else value


def tensors_in(value: Any, place: Place = ()) -> list[Place]:
    if isinstance(value, Recipe):
        return [place]
    return (
        [p for i, v in enumerate(value) for p in tensors_in(v, (*place, i))]
        if isinstance(value, list)
        else []
    )


@st.composite
def calls(draw: Any) -> Call:
    """A right call; or one with arguments spoilt, missing, too many, or sharing memory."""
    right = draw(right_calls())
    op, arguments = right.op, right.arguments
    how = draw(
        st.sampled_from(
            ["right", "right", "spoilt", "spoilt", "twice spoilt", "fewer", "more", "overlap", "overlap"]
        )
    )
    if how == "right":
        return right
    places = tensors_in(arguments)
    if how == "overlap" and len(places) >= 2:
        one, other = draw(st.permutations(places))[:2]
        return Call(op, arguments, overlap=(one, other, draw(st.sampled_from([0, 0, 1, 3]))))
    for _ in range({"spoilt": 1, "twice spoilt": 2}.get(how, 0)):
        place = draw(st.integers(0, len(arguments) - 1))
        arguments[place] = draw(spoilt_at_one_place(arguments[place]))
    if op not in LOOK_FOR_NEGATED:
        arguments = not_negated(arguments)
    if how == "fewer":
        del arguments[draw(st.integers(0, len(arguments) - 1))]
    elif how == "more":
        arguments.insert(draw(st.integers(0, len(arguments))), draw(NO_TENSORS))
    return Call(op, arguments)


def make_all(call: Call) -> list[Any]:
    arguments = made(call.arguments)
    if call.overlap is not None:
        one, other, further = call.overlap
        lists = []
        for place in (one, other):
            within = arguments
            for i in place[:-1]:
                within = within[i]
            lists.append(within)
        a, b = lists[0][one[-1]], lists[1][other[-1]]
        further *= b.element_size()
        size = max(a.nbytes, b.nbytes + further)
        whole = torch.zeros(size + 16, dtype=torch.uint8)
        for within, at, t, first in ((lists[0], one[-1], a, 0), (lists[1], other[-1], b, further)):
            within[at] = whole[first : first + t.nbytes].view(t.dtype).view(t.shape).copy_(t.detach())
    return arguments


def take_optimizer_step(
    op: str, params: Any, grads: Any, steps: Any, names: Any, states: Any, options: Any
) -> Any:
    group = getattr(torch.optim, OPTIMIZERS[op])([torch.zeros(1)]).param_groups[0]
    state = {}
    for i, (param, grad, count) in enumerate(zip(params, grads, steps, strict=True)):
        if isinstance(param, Tensor):
            param.grad = grad
        step = torch.tensor(float(count)) if type(count) is int else count
        state[param] = {"step": step, **{key: each[i] for key, each in zip(names, states, strict=True)}}
    return getattr(_dispatch.cpu, op)({**group, **options, "params": params}, state, match_layout)


def run(op: str, arguments: list[Any]) -> Any:
    if op in OPTIMIZERS:
        return take_optimizer_step(op, *arguments)
    module = _dispatch.cpu.testing if op == "exp" else _dispatch.cpu
    return getattr(module, op)(*arguments)


def has_huge(value: Any) -> bool:
    if isinstance(value, (list, tuple, dict)):
        return any(map(has_huge, value.values() if isinstance(value, dict) else value))
    return isinstance(value, (int, float)) and abs(value) > HUGE


def pairs(actual: Any, expected: Any) -> Outputs:
    if isinstance(actual, Tensor) and isinstance(expected, Tensor):
        return [(actual, expected)]
    if isinstance(actual, list) and isinstance(expected, list):
        return [pair for a, e in zip(actual, expected, strict=False) for pair in pairs(a, e)]
    return []


def may_be_left_to_torch(call: Call, arguments: list[Any]) -> bool:
    """Whether a right call may say why torch must do it."""
    tensors = arguments[0]
    if call.op == "clip_grad_norm":
        return sum(t.numel() for t in tensors) == 0 or (arguments[2] and not norm_of(tensors).isfinite())
    return False


def bad_index(op: str, arguments: list[Any]) -> bool:
    target, classes = (
        (arguments[1], arguments[0].shape[1]) if op == LOSSES[0] else (arguments[3], len(arguments[1]))
    )
    return has_bad_index(target, classes, arguments[-5 if op == LOSSES[1] else -4])


def has_infinite_weight(op: str, arguments: list[Any]) -> bool:
    """Whether a class has one, or a probability: the loss is NaN then where torch's may be infinite."""
    target, weight = arguments[1:3] if op == LOSSES[0] else arguments[3:5]
    return any(t is not None and not t.isfinite().all() for t in (target, weight))


@given(calls())
def an_error_or_the_right_result(call: Call) -> None:
    about_to_call(call)
    arguments = make_all(call)
    if (
        call.op == "bernoulli"
        and len(arguments) == 3
        and type(arguments[2]) is int
        and 0 <= arguments[2] < 10
    ):
        arguments[2] = torch.Generator().manual_seed(arguments[2])
    given_ = copied(arguments)
    dtype = getattr(arguments[0], "dtype", None)
    try:
        done = run(call.op, arguments)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        IndexError,
        BufferError,
        OverflowError,
        NotImplementedError,
        AttributeError,
    ) as error:
        is_of_index = isinstance(error, IndexError) and call.op in LOSSES and bad_index(call.op, given_)
        if call.right and not is_of_index:
            raise
        return
    if call.op in LOSSES:
        assert not bad_index(call.op, given_)
        if has_infinite_weight(call.op, given_):
            return
    if isinstance(done, str) or (done is None and call.op in OPTIMIZERS):  # the reason why torch must do it
        assert not call.right or may_be_left_to_torch(call, given_), done
        return
    if has_huge(call.arguments):
        return  # float64 overflows too
    rounding = {"dtype": dtype} if call.op in ROUNDING else {}
    found = pairs(arguments, REFERENCES[call.op](*given_, **rounding))
    if call.op == "clip_grad_norm":
        found.append((done, norm_of(given_[0])))
    if call.op == "bernoulli" and found:
        found.append((arguments[2].get_state(), given_[2].get_state()))
    for actual, expected in found:
        tolerance = max(TOLERANCES.get(t, 0.0) for t in (actual.dtype, dtype))
        finite = expected[expected.isfinite()] if tolerance else expected.new_empty(0)
        scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
        if actual.dtype == torch.float16 and scale > OVERFLOWS:
            return
        value = actual.detach().to(expected.dtype)
        if call.op == LOSSES[0] and actual is arguments[4]:
            value = value * done  # left to the caller
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
    assert not isinstance(done, float) or not math.isinf(done)


@pytest.mark.parametrize(("calls", "seed"), PARTS)
def test_hostile_calls_of_bindings(calls: int, seed: int, tmp_path: Path) -> None:
    holds(an_error_or_the_right_result, calls, seed, tmp_path)
