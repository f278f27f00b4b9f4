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
        op: whose kernels, as `_dispatch.torch_reason` is given it.
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
    """Each of the three products of a layer has the sides that one of them has."""
    return ((a, b, c), (b, c, a), (c, a, b))


# Sizes at which other kernels compute a product (`ops/_cuda_limits.py`, `csrc/gemm/cuda/plan.h`), on a device
# of any size: `tests/selftest/test_selftest_kernels.py` sees that none is left out. Tiles of 128 for all
# multiprocessors; few of them, with K in parts; smaller ones with K in parts; many rows of few columns.
_TILES, _PARTS, _SMALL_PARTS = _turned(1536, 1536, 96), _turned(256, 256, 2304), _turned(60, 40, 300)
_NARROW = ((9100, 45, 40),)
# Torch's products with a pass of fastnn's, in packs and without.
_TORCHS = ((1024, 1024, 1024), (1024, 1025, 1024))
_LARGE: dict[torch.dtype, Shapes] = {
    torch.float32: (*_TILES, *_PARTS, *_SMALL_PARTS, *_NARROW, (1536, 80, 1536), (256, 80, 6144)),
    torch.float64: (*_SMALL_PARTS, *_NARROW, (256, 256, 256), (256, 257, 256)),
    **dict.fromkeys(_HALF, (*_TILES, *_PARTS, *_SMALL_PARTS, *_NARROW, *_TORCHS)),
}
_CHUNKS: Shapes = (*_NARROW, (400, 32_000, 80), (400, 32_000, 128))
_GRAMS: Shapes = ((1, 256, 2048), (72, 160, 100), (160, 48, 40))


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
# Of which optimizers count their steps on the device, and of which a GradScaler leaves the scale to them.
_CAPTURABLE, _FUSED = (optim.Adam, optim.AdamW, optim.RMSprop), (optim.Adam, optim.AdamW, optim.SGD)


def cases_for(device: torch.device) -> list[Case]:
    """Those of a device."""
    return [*small_cases(device.type == "cuda"), *large_cases()]


def small_cases(on_device: bool) -> list[Case]:
    """Those of every op, dtype and update that take tensors of some thousand elements.

    Args:
        on_device: whether optimizers can keep their numbers on the device.
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
    cases.append(Case("train_epoch", "float32", training.epoch))
    return cases


def large_cases() -> list[Case]:
    """Those of kernels that small tensors do not reach, and of two calls at the same time."""
    cases = []
    for name, t in _DTYPES.items():
        cases += [
            Case("linear", f"{name}, large", partial(ops.linear, _LARGE[t], (None, "gelu"), t)),
            Case("linear_cross_entropy", f"{name}, large", partial(ops.linear_cross_entropy, _CHUNKS, t)),
            Case("gram_matrix", f"{name}, large", partial(ops.gram_matrix, _GRAMS, t)),
            Case(
                "cross_entropy",
                f"{name}, many classes",
                partial(ops.cross_entropy, ((5, 32_000), (2, 150_001)), t),
            ),
        ]
    f32 = torch.float32
    for op, run in (
        ("linear", partial(ops.linear, (*_TILES, *_PARTS, *_TORCHS), (None, "gelu"), f32)),
        ("linear_cross_entropy", partial(ops.linear_cross_entropy, _CHUNKS, f32)),
        ("gram_matrix", partial(ops.gram_matrix, _GRAMS, f32)),
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
            capturable = {"capturable": True} if kind in _CAPTURABLE else {}
            add(kind, (word, what, "lr on the device"), options | more | capturable, lr_on_device=True)
            if kind in _FUSED:
                add(kind, (word, what, "GradScaler"), options | more | {"fused": True}, scaled=True)
    if on_device:
        many = {"sizes": training.MANY_SIZES, "lr_on_device": True}
        add(optim.Adam, ("many tensors",), {"capturable": True}, **many)
    return cases
