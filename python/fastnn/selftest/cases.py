"""All tests of a self-test."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from fastnn import optim
from fastnn.ops.linear import ACTIVATIONS
from fastnn.optim.native import NativeOptimizer, update_name
from fastnn.selftest import ops, training


class Case(NamedTuple):
    """One test.

    Attributes:
        op: whose kernels, as passed to `_dispatch.torch_reason`.
        what: the dtype, or what is special.
        run: raises whatever is wrong.
    """

    op: str
    what: str
    run: Callable[[torch.device], None]


_HALF = (torch.bfloat16, torch.float16)
_DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.float64, *_HALF)}
_CLASSES = ((37, 10), (9, 301), (3, 2000), (4, 9, 5))
_ODD = ((37, 70, 45), (1, 1, 1), (128, 64, 96))
Shapes = tuple[tuple[int, int, int], ...]


def _turned(a: int, b: int, c: int) -> Shapes:
    """Layers of which each of the three products in turn has sides a, b, c."""
    return ((a, b, c), (b, c, a), (c, a, b))


# Sizes at which different kernels compute a product (`ops/_cuda_limits.py`, `csrc/gemm/cuda/plan.h`), on a
# device of any size: `tests/selftest/test_selftest_kernels.py` checks that none is left out. 120 tiles of
# 128, whole and at an edge, and four with K split; smaller ones with K split; many rows of few columns. The
# reference is computed on the CPU, so they are no larger than needed.
_TILES, _SMALL_PARTS, _NARROW = _turned(136, 7656, 136), _turned(60, 40, 300), ((9100, 45, 40),)
_PLAIN = (136, 7656, 80)  # float32 without tensor cores, in such tiles
# Torch's products with a pass of fastnn's, in packs and without.
_TORCHS = ((1024, 1024, 1024), (1024, 1025, 1024))
_LARGE: dict[torch.dtype, Shapes] = {
    torch.float32: (*_TILES, *_SMALL_PARTS, *_NARROW, _PLAIN),
    torch.float64: (*_SMALL_PARTS, *_NARROW, (256, 256, 256), (256, 257, 256)),
    **dict.fromkeys(_HALF, (*_TILES, *_SMALL_PARTS, *_NARROW, *_TORCHS)),
}
# And rows for two chunks: the weight gradients of the second are added to those of the first, by torch except
# for float32.
_TWO_CHUNKS = (224, 32_000, 96)  # float32 on the tensor cores
_CHUNKS: dict[torch.dtype, Shapes] = {
    torch.float32: (*_NARROW, _PLAIN, _TWO_CHUNKS),
    torch.float64: (*_NARROW, (112, 32_000, 24)),
    **dict.fromkeys(_HALF, (*_NARROW, _TILES[0], (400, 32_000, 88))),
}
# Several tiles of a matrix with K split, also on tensor cores; many matrices of several tiles and of one.
_TENSOR_GRAM, _GRAMS = (1, 256, 2048), ((1, 160, 512), (60, 136, 72), (120, 40, 40))
_LARGE_GRAMS: dict[torch.dtype, Shapes] = {
    **dict.fromkeys(_DTYPES.values(), _GRAMS),
    torch.float32: (_TENSOR_GRAM, *_GRAMS),
}


_UPDATES: tuple[tuple[type[NativeOptimizer], str, dict[str, Any]], ...] = (
    (optim.Adam, "", {"weight_decay": 0.1}),
    (optim.AdamW, "AdamW", {}),
    (optim.Adam, "amsgrad", {"amsgrad": True, "maximize": True}),
    (optim.SGD, "", {}),
    (optim.SGD, "momentum", {"momentum": 0.9, "nesterov": True}),
    (optim.Adagrad, "", {}),
    (optim.RMSprop, "", {}),
    (optim.RMSprop, "momentum", {"momentum": 0.9}),
    (optim.RMSprop, "centered", {"centered": True}),
    (optim.RMSprop, "centered, momentum", {"centered": True, "momentum": 0.9}),
)
_FUSED = (optim.Adam, optim.AdamW, optim.SGD)  # to which a GradScaler leaves the scale


def cases_for(device: torch.device) -> list[Case]:
    """The tests for a device."""
    return [*small_cases(device.type == "cuda"), *large_cases()]


def small_cases(on_device: bool) -> list[Case]:
    """The tests of every op, dtype and update with tensors of some thousand elements.

    Args:
        on_device: whether optimizers can keep their numbers on the device, and steps be of 16 bits.
    """
    cases = []
    for name, t in _DTYPES.items():
        activations = ACTIVATIONS if t is torch.float32 else (None, "relu", "gelu")
        cases += [
            Case("relu", name, partial(ops.relu, t)),
            Case("linear", name, partial(ops.linear, _ODD, activations, t)),
            Case("linear", f"{name}, chain", partial(ops.chain, t)),
            Case("cross_entropy", name, partial(ops.cross_entropy, _CLASSES, t)),
            Case("linear_cross_entropy", name, partial(ops.linear_cross_entropy, ((41, 33, 32),), t)),
            Case("gram_matrix", name, partial(ops.gram_matrix, ((2, 37, 70), (1, 64, 33)), t)),
            Case("clip_grad_norm", name, partial(training.clip, t)),
            *_updates(name, t, on_device),
        ]
    cases += [
        Case("cross_entropy", "index out of range", ops.cross_entropy_index),
        Case("linear_cross_entropy", "index out of range", ops.linear_cross_entropy_index),
    ]
    for name in ("float32", "float64"):
        for update, make in (("Adam", training.adam), ("SGD", training.sgd)):
            cases.append(Case("train_step", f"{name}, {update}", partial(training.step, make, _DTYPES[name])))
    if on_device:  # the CPU has no 16-bit steps; Adam magnifies rounding errors in them
        for t in _HALF:
            name = str(t).removeprefix("torch.")
            cases.append(Case("train_step", f"{name}, SGD", partial(training.step, training.sgd, t)))
    cases.append(Case("train_epoch", "float32", training.epoch))
    return cases


def large_cases() -> list[Case]:
    """The tests of kernels that small tensors do not reach, and of two concurrent calls."""
    cases = []
    for name, t in _DTYPES.items():
        cases += [
            Case("linear", f"{name}, large", partial(ops.linear, _LARGE[t], (None, "gelu"), t)),
            Case("linear_cross_entropy", f"{name}, large", partial(ops.linear_cross_entropy, _CHUNKS[t], t)),
            Case("gram_matrix", f"{name}, large", partial(ops.gram_matrix, _LARGE_GRAMS[t], t)),
            Case(
                "cross_entropy",
                f"{name}, many classes",
                partial(ops.cross_entropy, ((5, 32_000), (2, 150_001)), t),
            ),
        ]
    f32 = torch.float32
    for op, run in (
        ("linear", partial(ops.linear, (*_TILES, *_TORCHS), (None, "gelu"), f32)),
        ("linear_cross_entropy", partial(ops.linear_cross_entropy, (_TWO_CHUNKS,), f32)),
        ("gram_matrix", partial(ops.gram_matrix, (_TENSOR_GRAM,), f32)),
    ):
        cases.append(Case(op, "float32, large, TF32 allowed", partial(ops.tf32_allowed, run)))
    for op, work in {**ops.TWO_AT_ONCE, **training.TWO_AT_ONCE}.items():
        cases.append(Case(op, "two at the same time", partial(ops.two_at_once, op, work)))
    return cases


def _updates(name: str, t: torch.dtype, on_device: bool) -> list[Case]:
    kept: dict[str, dict[str, Any]] = {"": {}}
    if t in _HALF:
        kept |= {"float32 state": {"state_dtype": torch.float32}, "masters": {"master_weights": True}}
    cases = []

    def add(kind: type[NativeOptimizer], words: tuple[str, ...], options: dict[str, Any], **how: Any) -> None:
        what = ", ".join(word for word in (name, *words) if word)
        cases.append(Case(update_name(kind), what, partial(training.update, kind, options, t, **how)))

    for word, more in kept.items():
        for kind, what, options in _UPDATES:
            add(kind, (word, what), options | more)
            if not on_device:
                continue
            # The same kernels, with numbers from elsewhere.
            few, options = {"sizes": training.FEW_SIZES}, options | more
            capturable = {"capturable": True} if kind in training.CAPTURABLE else {}
            add(kind, (word, what, "lr on the device"), options | capturable, lr_on_device=True, **few)
            if kind in _FUSED:
                add(kind, (word, what, "GradScaler"), options | {"fused": True}, scaled=True, **few)
    if on_device and t is torch.float32:
        many = {"sizes": training.MANY_SIZES, "lr_on_device": True}
        add(optim.Adam, ("many tensors",), {"capturable": True}, **many)
    return cases
