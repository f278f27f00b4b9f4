"""Hostile calls of public functions: torch's own error or the right result, never a crash."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fastnn
import fastnn.functional as FF
from apart import PARTS, holds
from fastnn import _dispatch
from fastnn.ops.linear import ACTIVATIONS
from fastnn.ops.mlp import Layer, mlp
from hostile_outcomes import Call, check
from hostile_tensors import (
    ANY_SHAPE,
    FLOATING,
    NO_TENSORS,
    SIZES,
    Recipe,
    finite,
    indices,
    on_meta,
    recipes,
    spoilt,
)


def relu(input: Any, inplace: Any) -> Any:
    # A leaf that requires a gradient must not be written.
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
    """Two steps; also the resulting options."""
    leaves = [nn.Parameter(p.detach()) for p in parameters]
    optimizer = getattr(fastnn.optim, kind)(leaves, **options)
    for _ in range(2):
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad.detach()
        optimizer.step()
    return leaves


def training(widths: Any, dtype: Any, loss: Any, kind: str, options: Any) -> Any:
    """A step of a chain, which is one native call, and the model."""
    torch.manual_seed(0)
    layers = [nn.Linear(k, n, dtype=dtype) for k, n in itertools.pairwise(widths)]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1]
    optimizer = getattr(fastnn.optim, kind)(model.parameters(), lr=0.01)
    return fastnn.TrainStep(model, getattr(nn, loss)(), optimizer, **options), model


def train(input: Any, target: Any, **chain: Any) -> Any:
    step, model = training(**chain)
    return [step(input, target), step(input, target), *model.parameters()]


def epoch(images: Any, labels: Any, batch_size: Any, permutation: Any, lr: Any, **chain: Any) -> Any:
    step, model = training(**chain)
    return [step.epoch(images, labels, batch_size, permutation, lr=lr), *model.parameters()]


def convert(model: Any, dtype: Any, input: Any) -> Any:
    """The results of a model converted to fastnn, and back to torch."""
    torch.manual_seed(0)
    made: dict[str, Callable[[], Any]] = {
        "linear": lambda: nn.Linear(4, 3, dtype=dtype),
        "relu": nn.ReLU,
        "in place": lambda: nn.Sequential(nn.Linear(4, 4, dtype=dtype), nn.ReLU(inplace=True)),
        "shared": lambda: nn.Sequential(*[nn.Linear(4, 4, dtype=dtype)] * 2),
        "other": nn.Tanh,
    }
    module = made[model]() if model in made else model
    return [fastnn.convert(module)(input), fastnn.revert(module)(input)]


def construct(kind: str, options: Any, inputs: Any) -> Any:
    """A module of fastnn, or of torch if fastnn is disabled."""
    torch.manual_seed(0)
    module = getattr(nn if _dispatch.is_disabled() else fastnn.nn, kind)(**options)
    return [module(*inputs), *module.parameters()]


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
    "epoch": epoch,
    "convert": convert,
    "construct": construct,
}


@st.composite
def right_calls(draw: Any) -> Call:
    """A call that an op accepts; with arbitrary layouts and values of tensors."""
    dtype = draw(st.sampled_from(FLOATING))
    m, n, k = draw(SIZES), draw(SIZES), draw(SIZES)
    batch = draw(st.sampled_from([(m,), (), (m, 2), (2, 1, m)]))

    def tensor(*shape: int) -> Recipe:
        recipe: Recipe = draw(recipes(shape, dtype))
        return recipe

    def tensors(shapes: list[tuple[int, ...]]) -> list[Recipe]:
        return [tensor(*shape) for shape in shapes]

    op = draw(st.sampled_from([*OPS]))
    if op in ("optimize", "train", "epoch"):  # Adam's eps is 0 in float16
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
            # With an infinite one the loss is NaN where torch's may be infinite.
            "weight": finite(tensor(n)) if optional else None,
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
    elif op == "convert":
        arguments = {"model": draw(st.sampled_from(["linear", "relu", "in place", "shared", "other"]))}
        arguments |= {"dtype": dtype, "input": tensor(*batch, 4)}
    elif op == "construct":
        kind = draw(st.sampled_from(["Linear", "ReLU", "CrossEntropyLoss"]))
        options = {
            "Linear": {
                "in_features": k,
                "out_features": n,
                "bias": optional,
                "dtype": dtype,
                "device": "cpu",
            },
            "ReLU": {"inplace": False},
            "CrossEntropyLoss": {
                "weight": None,
                "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
                "ignore_index": draw(st.sampled_from([-100, 0])),
                "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
            },
        }[kind]
        inputs = {"Linear": [tensor(*batch, k)], "ReLU": [tensor(m)]}.get(kind) or [
            tensor(m, n),
            draw(indices((m,), n)),
        ]
        arguments = {"kind": kind, "options": options, "inputs": inputs}
    else:
        widths = [max(k, 1), *draw(st.lists(SIZES.map(lambda n: max(n, 1)), min_size=1, max_size=3))]
        loss = draw(st.sampled_from(["CrossEntropyLoss", "MSELoss"]))
        of_bytes = draw(st.booleans())
        options = {"max_norm": draw(st.sampled_from([None, 0.1, 1e9])), "keep_grad": draw(st.booleans())}
        if of_bytes:
            options |= {"mean": draw(st.sampled_from([0.0, 0.13])), "std": draw(st.sampled_from([1.0, 0.3]))}
        arguments = {
            "widths": widths,
            "dtype": dtype,
            "loss": loss,
            "kind": draw(st.sampled_from(["SGD", "Adam", "AdamW"])),
            "options": options,
        }
        data = draw(indices((m, widths[0]), 256, torch.uint8)) if of_bytes else tensor(m, widths[0])
        target = draw(indices((m,), widths[-1])) if loss == "CrossEntropyLoss" else tensor(m, widths[-1])
        if op == "train":
            arguments |= {"input": data, "target": target}
        else:
            rows = draw(st.sampled_from([0, 1, m, m + 1]))
            size = draw(st.sampled_from([1, 2, 8, 40]))
            rates = draw(st.sampled_from([None, recipes((-(-rows // size),), torch.float64)]))
            arguments |= {
                "images": data,
                "labels": target,
                "batch_size": size,
                "lr": None if rates is None else draw(rates),
            }
            arguments["permutation"] = draw(indices((rows,), m))
    return Call(op, arguments)


@st.composite
def calls(draw: Any) -> Call:
    """A right call, or one with one or two corrupted arguments."""
    op, right, _ = draw(right_calls())
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
    if draw(st.integers(0, 29)) == 0:  # all of them: for mixed devices torch itself returns garbage
        right, arguments = (
            {name: on_meta(value) for name, value in each.items()} for each in (right, arguments)
        )
    return Call(op, arguments, right if times == 1 else {} if times else None)


@given(calls())
def as_torch_has_it(call: Call) -> None:
    check(OPS, call)


@pytest.mark.parametrize(("calls", "seed"), PARTS)
def test_hostile_calls_do_what_torch_does(calls: int, seed: int, tmp_path: Path) -> None:
    holds(as_torch_has_it, calls, seed, tmp_path)
