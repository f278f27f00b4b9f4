"""All tests of a self-test."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from fastnn import optim
from fastnn.ops.linear import ACTIVATIONS
from fastnn.optim.native import NativeOptimizer
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
_ODD = ((37, 70, 45), (1, 1, 1), (128, 64, 96))
# Sizes at which other kernels compute a product (`ops/_cuda_limits.py`, `csrc/gemm/cuda/plan.h`): fastnn's on
# the tensor cores, in tiles of each size, with K in parts and whole, and torch's with a pass of fastnn's.
_LARGE = {
    torch.float32: ((512, 512, 512), (640, 640, 80), (1408, 1280, 96)),
    torch.float64: ((256, 256, 256),),
    torch.bfloat16: ((256, 192, 512), (1408, 1280, 96), (1024, 1024, 1024)),
    torch.float16: ((256, 192, 512), (1408, 1280, 96), (1024, 1024, 1024)),
}


_UPDATES: tuple[tuple[str, type[NativeOptimizer], str, dict[str, object]], ...] = (
    ("adam", optim.Adam, "", {"weight_decay": 0.1}),
    ("adam", optim.AdamW, "AdamW", {}),
    ("adam", optim.Adam, "amsgrad", {"amsgrad": True, "maximize": True}),
    ("adam", optim.Adam, "capturable", {"capturable": True}),
    ("sgd", optim.SGD, "", {"momentum": 0.9, "nesterov": True}),
    ("adagrad", optim.Adagrad, "", {}),
    ("rmsprop", optim.RMSprop, "", {"momentum": 0.9}),
)


def cases_for(device: torch.device) -> list[Case]:
    """Those of a device."""
    return [*small_cases(device.type == "cuda"), *large_cases()]


def small_cases(capturable: bool) -> list[Case]:
    """Those of every op, dtype and update that take tensors of some thousand elements.

    Args:
        capturable: whether optimizers can count their steps on the device.
    """
    cases = []
    for name, t in _DTYPES.items():
        activations = ACTIVATIONS if t is torch.float32 else (None, "relu", "gelu")
        cases += [
            Case("relu", name, partial(ops.relu, t)),
            Case("linear", name, partial(ops.linear, _ODD, activations, t)),
            Case("linear", f"{name}, chain", partial(ops.chain, t)),
            Case("cross_entropy", name, partial(ops.cross_entropy, ((37, 10), (9, 301), (3, 2000)), t)),
            Case("linear_cross_entropy", name, partial(ops.linear_cross_entropy, 41, 33, t)),
            Case("gram_matrix", name, partial(ops.gram_matrix, ((2, 37, 70), (1, 64, 33)), t)),
            Case("clip_grad_norm", name, partial(training.clip, t)),
            *_updates(name, t, capturable),
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
            Case("gram_matrix", f"{name}, large", partial(ops.gram_matrix, ((1, 256, 2048),), t)),
            Case(
                "cross_entropy",
                f"{name}, many classes",
                partial(ops.cross_entropy, ((5, 32_000), (2, 150_001)), t),
            ),
        ]
    tf32 = partial(ops.linear_tf32, _LARGE[torch.float32])
    cases.append(Case("linear", "float32, large, TF32 allowed", tf32))
    for name in ("float32", "bfloat16"):
        chunks = partial(ops.linear_cross_entropy, 400, 32_000, _DTYPES[name])
        cases.append(Case("linear_cross_entropy", f"{name}, chunks", chunks))
    for op, call in ops.TWO_AT_ONCE.items():
        cases.append(Case(op, "two at the same time", partial(ops.two_at_once, call)))
    return cases


def _updates(name: str, t: torch.dtype, capturable: bool) -> list[Case]:
    kept: dict[str, dict[str, object]] = {"": {}}
    if t in _HALF:
        kept |= {"float32 state": {"state_dtype": torch.float32}, "masters": {"master_weights": True}}
    cases = []
    for word, more in kept.items():
        for op, kind, what, options in _UPDATES:
            if options.get("capturable") and not capturable:
                continue
            words = ", ".join(part for part in (name, word, what) if part)
            cases.append(Case(op, words, partial(training.update, kind, {**options, **more}, t)))
    return cases
