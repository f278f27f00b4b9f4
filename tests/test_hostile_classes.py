"""Hostile calls of the compiled module's classes: an exception or an answer, never a crash.

Programs and chains trust their plan, which Python makes; here they are given invalid plans.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from apart import PARTS, about_to_call, holds
from fastnn import _dispatch
from fastnn._torch_internals import MODULE_HOOKS, on_accumulator
from fastnn.ops.sizes import CHAINS, LIMITS
from fastnn.ops.sizes import LAYERS as LAYER_LIMITS
from fastnn.optim.native import match_layout
from hostile_tensors import ANY_DTYPE, ANY_SHAPE, NO_TENSORS, indices, made, recipes, spoilt

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


def nothing(*_: Any, **__: Any) -> None:
    return None


def yes() -> bool:
    return True


def raises(*_: Any, **__: Any) -> None:
    raise ArithmeticError


class Call(NamedTuple):
    kind: str
    made: list[Any]  # arguments of the constructor
    calls: list[tuple[str, list[Any]]]


TENSOR = st.builds(recipes, ANY_SHAPE, ANY_DTYPE).flatmap(lambda t: t)
LEAF = st.one_of(
    NO_TENSORS,
    TENSOR,
    st.sampled_from(
        [nothing, raises, Tensor, int, "relu", "weight", "native", "arena", "params", -1, 0, object()]
    ),
)
ANYTHING = st.recursive(
    LEAF,
    lambda some: (
        st.lists(some, max_size=3)
        | st.lists(some, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(["weight", "bias", "params", "lr", "step", 0]), some, max_size=3)
    ),
    max_leaves=6,
)
ALL = st.lists(ANYTHING, max_size=8)
LIST, TUPLE = st.lists(ANYTHING, max_size=2), st.lists(ANYTHING, max_size=3).map(tuple)
# Tuples in the form of buffers and nodes, with arbitrary content.
BUFFER = st.tuples(st.sampled_from(["arena", "input", "gradient", "output", "x"]), *[ANYTHING] * 7)
NODE = st.tuples(st.sampled_from(["native", "python", "optimizer", "x"]), *[ANYTHING] * 6)
PROGRAM = [
    LIST,
    ANYTHING,
    TUPLE,
    st.lists(BUFFER | ANYTHING, max_size=2),
    LIST,
    st.lists(NODE | ANYTHING, max_size=2),
]
PROGRAM += [*[LIST] * 7, ANYTHING, st.just(nothing)]

# Modules, one of them without its dict of hooks, and the classes that read and run them.
LAYERS = [nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU(), nn.GELU(), nn.GELU(approximate="")]
del LAYERS[1].__dict__[MODULE_HOOKS[0]]
FORMS = {nn.ReLU: "relu", nn.GELU: {"none": "gelu"}}
READER = [nn.Linear, FORMS, dict.fromkeys((nn.Linear, *FORMS), yes), "_parameters", MODULE_HOOKS, "compiled"]
SMALL = [_dispatch.PLAIN_TYPES, nothing, vars(nn.functional), raises, LAYER_LIMITS, CHAINS, LIMITS]


@st.composite
def chain_steps(draw: Any) -> Call:
    """A valid call, except for one or two of its arguments."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    n, k = draw(st.integers(1, 5)), draw(st.integers(1, 5))

    def tensor(*shape: int) -> Any:
        return draw(recipes(shape, dtype, ("parameter",)))

    layers = [({"weight": tensor(n, k), "bias": tensor(n)}, None)]
    constructor = [layers, draw(st.sampled_from(["adam", "sgd"])), False, None, False, 0.0, 1.0]
    constructor += [match_layout, on_accumulator]
    target = draw(indices((3,), n))
    data = draw(recipes((3, k), dtype))
    options = ("cross_entropy", 1.0, 0.0)
    run = [[], {}, data, target, draw(recipes((), dtype, ("contiguous",))), options]
    batches = [*run[:4], draw(recipes((1,), dtype, ("contiguous",))), options, draw(indices((3,), 3)), None]
    calls = [("run", run), ("run_batches", batches)]
    for arguments in (constructor, run, batches):
        for _ in range(draw(st.integers(0, 2))):
            at = draw(st.integers(0, len(arguments) - 1))
            value = arguments[at]
            arguments[at] = draw(ANYTHING | spoilt(value) if hasattr(value, "layout") else ANYTHING)
    return Call("ChainStep", constructor, calls)


WATCHED = (
    "item",
    "absent",
    "attribute",
    "content",
    "elements",
    "class_item",
    "class_absent",
    "type",
    "unhooked",
)


@st.composite
def calls(draw: Any) -> Call:
    kind = draw(st.sampled_from(["ChainStep", "LayerReader", "PlainCall", "Program", "SmallLayers", "Watch"]))
    if kind == "ChainStep" and draw(st.booleans()):
        return draw(chain_steps())
    if kind == "Watch":
        methods = st.tuples(st.sampled_from(WATCHED), st.lists(ANYTHING, min_size=1, max_size=3))
        return Call(kind, [], [*draw(st.lists(methods, max_size=5)), ("unchanged", [])])
    if kind == "PlainCall" and draw(st.integers(0, 3)):
        states = draw(st.lists(st.tuples(ANYTHING, ANYTHING), max_size=2))
        types = frozenset([Tensor, nn.Parameter])
        return Call(kind, [types, states], [("__call__", [draw(TUPLE)]) for _ in range(2)])
    if kind == "LayerReader":
        of_modules = [draw(st.lists(st.sampled_from(LAYERS), max_size=4) | ANYTHING), draw(ANYTHING)]
        return Call(kind, READER if draw(st.integers(0, 3)) else draw(ALL), [("read", of_modules)])
    if kind == "SmallLayers":
        layer, chain = ([draw(ANYTHING) for _ in range(4)] for _ in range(2))
        constructor = SMALL if draw(st.integers(0, 3)) else draw(ALL)
        return Call(kind, constructor, [("layer", layer), ("chain", chain)])
    if kind == "Program" and draw(st.integers(0, 3)):
        return Call(
            kind, [draw(part) for part in PROGRAM], [("run", [draw(TUPLE)]), ("run_batches", draw(ALL))]
        )
    return Call(kind, draw(ALL), [("run", draw(ALL)), ("run_batches", draw(ALL)), ("__call__", draw(ALL))])


def all_made(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: all_made(each) for key, each in value.items()}
    if type(value) is tuple:
        return tuple(map(all_made, value))
    return [all_made(each) for each in value] if isinstance(value, list) else made(value)


@given(calls())
def an_exception_or_an_answer(call: Call) -> None:
    about_to_call(call)
    try:
        target = getattr(_dispatch.cpu, call.kind)(*all_made(call.made))
    except Exception:
        return
    for method, arguments in call.calls:
        given_ = all_made(arguments)
        try:
            getattr(target, method)(*given_)
        except Exception:
            continue


@pytest.mark.parametrize(("calls", "seed"), PARTS)
def test_hostile_calls_of_classes(calls: int, seed: int, tmp_path: Path) -> None:
    holds(an_exception_or_an_answer, calls, seed, tmp_path)
