"""Hostile calls of what users call: torch's own error or the right result, never a crash."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fastnn
import fastnn.functional as FF
from apart import PARTS, about_to_call, holds
from fastnn.ops.linear import ACTIVATIONS
from fastnn.ops.mlp import Layer, mlp
from hostile_tensors import (
    ANY_SHAPE,
    FLOATING,
    NO_TENSORS,
    SIZES,
    Recipe,
    indices,
    made,
    on_meta,
    recipes,
    spoilt,
)

# Of results of sums of at most 33 products of numbers around 1.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


class Call(NamedTuple):
    op: str
    arguments: dict[str, Any]
    # What the arguments were, where one of them was spoilt; empty where two were.
    right: dict[str, Any] | None = None


def relu(input: Any, inplace: Any) -> Any:
    # Of a leaf that requires a gradient nothing may be written.
    return FF.relu(input * 1 if inplace is True and isinstance(input, Tensor) else input, inplace)


def chain(input: Any, weights: Any, biases: Any, activations: Any) -> Any:
    return mlp(input, [Layer(*layer) for layer in zip(weights, biases, activations, strict=True)])


def clip(grads: Any, **options: Any) -> Any:
    parameters = [nn.Parameter(torch.empty_like(grad.detach())) for grad in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.detach()
    norm = fastnn.nn.utils.clip_grad_norm_(parameters, **options)
    return [norm, *(p.grad for p in parameters)]


def polyak(targets: Any, sources: Any, tau: Any) -> Any:
    fastnn.optim.polyak_(targets, sources, tau)
    return targets


def optimize(kind: str, parameters: Any, grads: Any, options: Any) -> Any:
    """Two steps; what the options make of them too."""
    leaves = [nn.Parameter(p.detach()) for p in parameters]
    optimizer = getattr(fastnn.optim, kind)(leaves, **options)
    for _ in range(2):
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad.detach()
        optimizer.step()
    return leaves


def train(widths: Any, dtype: Any, loss: Any, kind: str, input: Any, target: Any) -> Any:
    """Two steps of a chain in one native call each."""
    torch.manual_seed(0)
    layers = [nn.Linear(k, n, dtype=dtype) for k, n in itertools.pairwise(widths)]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1]
    step = fastnn.TrainStep(
        model, getattr(nn, loss)(), getattr(fastnn.optim, kind)(model.parameters(), lr=0.01)
    )
    return [step(input, target), step(input, target), *model.parameters()]


OPS: dict[str, Callable[..., Any]] = {
    "relu": relu,
    "linear": FF.linear,
    "chain": chain,
    "cross_entropy": FF.cross_entropy,
    "linear_cross_entropy": FF.linear_cross_entropy,
    "gram_matrix": FF.gram_matrix,
    "clip": clip,
    "polyak": polyak,
    "optimize": optimize,
    "train": train,
}


@st.composite
def right_calls(draw: Any) -> Call:
    """One that an op takes; its tensors are laid out and filled as they come."""
    dtype = draw(st.sampled_from(FLOATING))
    m, n, k = draw(SIZES), draw(SIZES), draw(SIZES)
    batch = draw(st.sampled_from([(m,), (), (m, 2), (2, 1, m)]))

    def tensor(*shape: int) -> Recipe:
        recipe: Recipe = draw(recipes(shape, dtype))
        return recipe

    def tensors(shapes: list[tuple[int, ...]]) -> list[Recipe]:
        return [tensor(*shape) for shape in shapes]

    op = draw(st.sampled_from([*OPS]))
    if op in ("optimize", "train"):  # Adam's eps is 0 in float16
        dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    activation = st.sampled_from(ACTIVATIONS)
    optional = draw(st.booleans())
    if op == "relu":
        arguments: dict[str, Any] = {"input": tensor(*draw(ANY_SHAPE)), "inplace": draw(st.booleans())}
    elif op == "linear":
        bias = tensor(n) if optional else None
        arguments = {"input": tensor(*batch, k), "weight": tensor(n, k), "bias": bias}
        arguments["activation"] = draw(activation)
    elif op == "chain":
        widths = [k, n, *draw(st.lists(SIZES, max_size=2))]
        count = len(widths) - 1
        arguments = {
            "input": tensor(*batch, k),
            "weights": tensors([(widths[i + 1], widths[i]) for i in range(count)]),
            "biases": [tensor(widths[i + 1]) if optional else None for i in range(count)],
            "activations": [draw(activation) for _ in range(count)],
        }
    elif op in ("cross_entropy", "linear_cross_entropy"):
        rest = draw(st.sampled_from([(), (2,), (1, 3)])) if op == "cross_entropy" else ()
        rows, logits = (m, *rest), (m, n, *rest)
        dtypes = st.sampled_from([torch.int64, torch.int64, torch.uint8])
        arguments = {
            "target": draw(indices(rows, n, draw(dtypes))) if draw(st.integers(0, 3)) else tensor(*logits),
            "weight": tensor(n) if optional else None,
            "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
            "ignore_index": draw(st.sampled_from([-100, 0, 1])),
            "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
            "z_loss": draw(st.sampled_from([0.0, 1e-3])),
        }
        if op == "cross_entropy":
            arguments["input"] = tensor(*logits)
        else:
            arguments |= {"input": tensor(m, k), "linear_weight": tensor(n, k)}
            arguments["linear_bias"] = tensor(n) if draw(st.booleans()) else None
    elif op == "gram_matrix":
        shape = draw(st.sampled_from([(n, k), (2, n, k), (2, n, k, 2)]))
        arguments = {"input": tensor(*shape), "normalize": draw(st.booleans())}
    elif op == "clip":
        arguments = {
            "grads": tensors(draw(st.lists(ANY_SHAPE, max_size=3))),
            "max_norm": draw(st.sampled_from([1.0, 0.0, 1e9, 0.1])),
            "norm_type": draw(st.sampled_from([2.0, 2, 1.0, float("inf")])),
            "error_if_nonfinite": draw(st.booleans()),
        }
    elif op == "polyak":
        shapes = draw(st.lists(ANY_SHAPE, max_size=3))
        arguments = {"targets": tensors(shapes), "sources": tensors(shapes)}
        arguments["tau"] = draw(st.sampled_from([0.0, 0.005, 0.5, 1.0]))
    elif op == "optimize":
        shapes = draw(st.lists(ANY_SHAPE, min_size=1, max_size=3))
        rates = draw(st.sampled_from([0.01, 0.0, 1.0]))
        arguments = {
            "kind": draw(st.sampled_from(["SGD", "Adam", "AdamW", "Adagrad", "RMSprop"])),
            "parameters": tensors(shapes),
            "grads": tensors(shapes),
            "options": {"lr": rates, "weight_decay": draw(st.sampled_from([0.0, 0.1]))},
        }
    else:
        widths = [max(k, 1), *draw(st.lists(SIZES.map(lambda n: max(n, 1)), min_size=1, max_size=3))]
        loss = draw(st.sampled_from(["CrossEntropyLoss", "MSELoss"]))
        arguments = {
            "widths": widths,
            "dtype": dtype,
            "loss": loss,
            "kind": draw(st.sampled_from(["SGD", "Adam", "AdamW"])),
            "input": tensor(m, widths[0]),
            "target": draw(indices((m,), widths[-1]))
            if loss == "CrossEntropyLoss"
            else tensor(m, widths[-1]),
        }
    return Call(op, arguments)


@st.composite
def calls(draw: Any) -> Call:
    """A right call, or one in which an argument is spoilt, or two."""
    op, right, _ = draw(right_calls())
    if draw(st.integers(0, 29)) == 0:  # all of them: of mixed devices torch itself makes up results
        right = {name: on_meta(value) for name, value in right.items()}
    arguments, times = dict(right), draw(st.sampled_from([0, 1, 1, 2]))
    for _ in range(times):
        name = draw(st.sampled_from([*arguments]))
        value = arguments[name]
        if isinstance(value, Recipe):
            arguments[name] = draw(spoilt(value))
        elif isinstance(value, list) and value and isinstance(value[0], Recipe):
            place = draw(st.integers(0, len(value) - 1))
            arguments[name] = value[:]
            if isinstance(value[place], Recipe):
                arguments[name][place] = draw(spoilt(value[place]))
        elif isinstance(value, dict):
            arguments[name] = {**value, draw(st.sampled_from([*value])): draw(NO_TENSORS)}
        elif not isinstance(value, (list, torch.dtype)) and name not in ("kind", "loss"):
            arguments[name] = draw(NO_TENSORS)
    return Call(op, arguments, right if times == 1 else {} if times else None)


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for each in value for t in tensors_in(each)] if isinstance(value, (list, tuple)) else []


def outcome(call: Call) -> type[Exception] | list[Tensor]:
    """The error of a call, or its results, and the gradients of what it was given."""
    arguments = {name: made(value) for name, value in call.arguments.items()}
    given = tensors_in(list(arguments.values()))
    try:
        results = tensors_in(OPS[call.op](**arguments))
        for result in results:
            if result.grad_fn is not None and result.is_floating_point():
                result.backward(torch.ones_like(result), retain_graph=True)
    except Exception as error:
        return type(error)
    gradients = [t.grad for t in given if t.is_leaf and t.grad is not None]
    return [t.detach() for t in (*results, *gradients)]


def has_two_faults(call: Call) -> bool:
    """Which of them is reported first, nobody promises."""
    if call.right is None:
        return False
    return not call.right or not isinstance(outcome(Call(call.op, call.right)), list)


def assert_same(ours: Any, theirs: Any, call: Call) -> None:
    assert isinstance(ours, list) == isinstance(theirs, list), (ours, theirs)
    if not isinstance(theirs, list):
        assert ours is theirs or has_two_faults(call), (ours, theirs)
        return
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)
        if b.device.type == "meta" or b.layout is not torch.strided:
            continue
        tolerance = TOLERANCES.get(b.dtype, 0.0)
        finite = b[b.isfinite()]
        scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


@given(calls())
def as_torch_has_it(call: Call) -> None:
    about_to_call(call)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = outcome(call)
        with fastnn.disabled():
            theirs = outcome(call)
    assert_same(ours, theirs, call)


@pytest.mark.parametrize(("calls", "seed"), PARTS)
def test_hostile_calls_do_what_torch_does(calls: int, seed: int, tmp_path: Path) -> None:
    holds(as_torch_has_it, calls, seed, tmp_path)
