"""The sizes from which a native op on the CPU is worth its overhead over torch's.

Checks, and a node of the autograd graph written in Python, take a few microseconds more than torch's own op,
and for some shapes MKL is faster as well. Below these limits the public functions call torch's op, so that no
layer becomes slower by being fastnn's. A chain of layers has one node instead of several and wins at any size
in a loop of its own; between other ops, where its longer path through Python is cold, it needs enough rows,
and, with gradients, enough work. With less it runs in torch's ops, but without the calls of its modules.

Measured on one thread of a Zen 4 and an Emerald Rapids (``benchmarks/NOTES.md`` has the tables); on Intel's
processors MKL, torch's products, is as fast as ours. FASTNN_ALWAYS_NATIVE=1 in the environment lifts all
limits. Anything without a size here is checked by `_dispatch.torch_reason`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import _dispatch
from fastnn._torch_internals import PythonNode, jit_state

Run = Callable[[Any, Any, Any, Any], Any]

SMALL = "it is too little work to repay a native call"

# While compiling, sizes may be symbols, which must not be compared; under torch.jit.trace they are tensors.
_is_compiling = torch.compiler.is_compiling
_kernels_always = _dispatch.always_native or _dispatch.cpu is None

# M N K of a single layer up to which torch computes it, without and with gradients, by activation: torch's
# GELU and SiLU are slow.
_fast_mkl = torch.backends.mkl.is_available() and _dispatch.cpu is not None and _dispatch.cpu.is_intel
LAYERS: dict[str | None, tuple[int, int]] = dict.fromkeys(("gelu", "gelu_tanh", "silu"), (1 << 15, 1 << 13))
if _fast_mkl:
    LAYERS[None] = 1 << 24, 1 << 24
    LAYERS |= dict.fromkeys(("relu", "sigmoid", "tanh"), (1 << 21, 1 << 24))
else:
    LAYERS[None] = 1 << 21, 1 << 20
    LAYERS["relu"] = 1 << 21, 1 << 16
    LAYERS |= dict.fromkeys(("sigmoid", "tanh"), (1 << 15, 1 << 13))
DEEP = 512
# The same for a float32 layer with fewer than DEEP inputs and no activation, with or without gradients.
TINY_LAYER = -1 if _kernels_always else min(LAYERS[None])
# The same for a chain, M N K of its largest layer: with gradients the smallest limit of its activations,
# without the largest, or `few_rows_work`.
_CHAIN = 1 << 25 if _fast_mkl else 1 << 20
CHAINS: dict[str | None, tuple[int, int]] = {
    **dict.fromkeys((None, "relu", "sigmoid"), (-1, _CHAIN)),
    **dict.fromkeys(("gelu", "gelu_tanh", "silu"), (-1, 1 << 13)),
    "tanh": (_CHAIN if _fast_mkl else 0, _CHAIN),
}
LIMITS = {
    # Without gradients, for at least `deep` inputs.
    "deep": DEEP,
    "deep_work": 1 << 16,
    "half_work": 1 << 15,  # in bfloat16 and float16, whose products torch computes slowly
    # Without gradients, a chain of fewer rows than this is small up to this M N K of its largest layer.
    "few_rows": 32,
    "few_rows_work": 1 << 20,
}

_GRAM = 1 << 19  # C C L
# Torch is slow if the classes do not fill a vector: limits for few of them and for more.
_FEW_CLASSES = 16
# Logits, without gradient and with one.
_CROSS_ENTROPY = {True: (256, 640), False: (12_000, 16_000)}
_MOST_LOGITS = max(max(limits) for limits in _CROSS_ENTROPY.values())
# N K C.
_LINEAR_CROSS_ENTROPY = {True: 1 << 17, False: 1 << 21} if _fast_mkl else {True: 1 << 17, False: 1 << 13}
# Size in bytes from which glibc's allocator maps fresh memory at each call. An op that only moves memory
# gains from huge pages alone.
_MAPPED = 32 << 20


def _may_be_small(input: Tensor) -> bool:
    """Whether the limits apply to it: a plain tensor on the CPU, whose sizes are numbers."""
    if _kernels_always or _dispatch.is_disabled() or _is_compiling():
        return False
    return type(input) is Tensor and type(input.numel()) is int and input.is_cpu


def small_layers(activate: Callable[[Tensor, str | None], Tensor]) -> tuple[Run, Run]:
    """Functions that run a layer or a chain in torch's ops if that is faster, and return None otherwise.

    Both take input, weight, bias and activation, or lists of them. Not for use while torch.compile traces.

    Args:
        activate: torch's activation of a tensor, by its name.
    """
    if _kernels_always:
        return (lambda *_: None,) * 2
    small = _dispatch.cpu.SmallLayers(
        _dispatch.PLAIN_TYPES, jit_state, vars(F), activate, LAYERS, CHAINS, LIMITS
    )
    return small.layer, small.chain


def is_small_relu(input: Tensor) -> bool:
    """Whether torch should compute it."""
    try:
        return _may_be_small(input) and input.nbytes < _MAPPED
    except (AttributeError, TypeError):
        return False


def is_small_gram(features: Tensor) -> bool:
    """Whether torch should compute the Gram matrices of (B, C, L)."""
    return _may_be_small(features) and features.numel() * features.size(1) < _GRAM


def is_small_cross_entropy(input: Tensor, target: Tensor) -> bool:
    """Whether torch should compute the loss of class indices, without smoothing, weights and z-loss.

    Torch then computes it, even if fastnn is disabled.
    """
    try:
        if type(input) is not Tensor or _kernels_always or _is_compiling():
            return False
        count = input.numel()
        if type(count) is not int or count >= _MOST_LOGITS:
            return False
        _, classes = input.shape
        with_gradient = torch.is_grad_enabled() and input.requires_grad
        if count >= _CROSS_ENTROPY[classes < _FEW_CLASSES][with_gradient]:
            return False
        if with_gradient and isinstance(input.grad_fn, PythonNode):
            return False  # a backward's first Python node takes 10 us, another 2
        return input.is_cpu and target.dim() == 1
    except (AttributeError, TypeError, ValueError):
        return False


def is_small_linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor
) -> bool:
    """Whether torch should compute layer and loss of class indices; also whether the shapes fit, (N, K),
    (C, K), (C) and (N), since other checks take as long as the layer."""
    try:
        if not _may_be_small(input):
            return False
        rows, features = input.shape
        classes, columns = linear_weight.shape
        return (
            rows * features * classes < _LINEAR_CROSS_ENTROPY[classes < _FEW_CLASSES]
            and columns == features
            and target.shape == (rows,)
            and not target.is_floating_point()
            and (linear_bias is None or linear_bias.shape == (classes,))
        )
    except (AttributeError, TypeError, ValueError):
        return False
