"""From what size on a native op on the CPU repays what it costs beside torch's.

Checks, and a node of the autograd graph that is written in Python, take a few microseconds more than torch's
own op, and for some shapes MKL is ahead besides. Below these limits the public functions call torch's op, so
that no layer becomes slower by being fastnn's. A chain of layers has one node instead of several and wins at
any size in a loop of its own; between other ops, where its longer path through Python is cold, it needs rows,
and work where gradients are wanted. With less it runs in torch's ops, but without the calls of its modules.

Measured on one thread of a Zen 4 and an Emerald Rapids (``benchmarks/NOTES.md`` has the tables); on Intel's
processors MKL, torch's products, is as fast as ours. FASTNN_ALWAYS_NATIVE=1 in the environment lifts all
limits. What cannot be asked for its size here is asked by `_dispatch.torch_reason`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastnn import _dispatch
from fastnn._torch_internals import PYTHON_NODE
from fastnn._torch_internals import jit_state as _jit_state

_SLOW_IN_TORCH = {"gelu", "gelu_tanh", "silu"}
SMALL = "it is too little work to repay a native call"

# Under these sizes may be symbols or tensors, which must not be compared.
_is_compiling = torch.compiler.is_compiling
_kernels_always = _dispatch.always_native or _dispatch.cpu is None

# M N K of a single layer up to which torch computes it, by activation: the last is that of all others, which
# torch computes slowly.
Limits = tuple[dict[str | None, int], int]
_fast_mkl = torch.backends.mkl.is_available() and _dispatch.cpu is not None and _dispatch.cpu.is_intel
if _fast_mkl:
    _LINEAR: Limits = {None: 1 << 24, **dict.fromkeys(("relu", "tanh", "sigmoid"), 1 << 21)}, 1 << 15
    _LINEAR_WITH_GRADIENTS: Limits = dict.fromkeys((None, "relu", "tanh", "sigmoid"), 1 << 25), 1 << 13
else:
    _LINEAR = {None: 1 << 21, "relu": 1 << 21}, 1 << 15
    _LINEAR_WITH_GRADIENTS = {None: 1 << 20, "relu": 1 << 16}, 1 << 13
_TINY_LINEAR = min(limits[None] for limits, _ in (_LINEAR, _LINEAR_WITH_GRADIENTS))
_LINEAR_DEEP = 1 << 16  # without gradients, from _DEEP inputs on
_DEEP = 512
_LINEAR_16_BIT = 1 << 15  # in bfloat16 and float16, whose products torch computes slowly

# Of a chain: rows, and M N K of its largest layer; this alone where gradients are wanted.
_FEW_ROWS = 32
_FEW_ROWS_WORK = 1 << 20
_CHAIN_WITH_GRADIENTS = 1 << 25 if _fast_mkl else 1 << 20
_SLOW_CHAIN = 1 << 13

_GRAM = 1 << 19  # C C L
# Torch is slow where the classes fill no vector: limits for few of them and for more.
_FEW_CLASSES = 16
# Logits, without gradient and with one.
_CROSS_ENTROPY = {True: (256, 640), False: (12_000, 16_000)}
# N K C.
_LINEAR_CROSS_ENTROPY = (
    {True: 1 << 17, False: 1 << 21} if _fast_mkl else dict.fromkeys((True, False), 1 << 13)
)
# Bytes from which glibc's allocator maps memory anew at each call. An op that only moves memory gains by huge
# pages alone.
_MAPPED = 32 << 20


def _may_be_small(input: Tensor) -> bool:
    """Whether there are limits for it: a plain tensor on the CPU, whose sizes are numbers."""
    if _kernels_always or _dispatch.is_disabled() or _is_compiling() or _jit_state() is not None:
        return False
    return type(input) is Tensor and input.is_cpu


def is_tiny_linear(input: Tensor, inputs: int, outputs: int) -> bool:
    """Whether `is_small_linear` says so of a layer without activation whatever wants a gradient; quicker.

    Torch computes it then, also where fastnn is disabled.
    """
    if type(input) is not Tensor or _kernels_always or _is_compiling() or _jit_state() is not None:
        return False
    work = input.numel() * outputs
    if input.dtype is torch.float32 and input.is_cpu:
        return work <= (_LINEAR_DEEP if inputs >= _DEEP else _TINY_LINEAR)
    return work <= _LINEAR_16_BIT and input.is_cpu


def is_small_linear(input: Tensor, weight: Tensor, activation: str | None) -> bool:
    """Whether torch should compute a single layer."""
    try:
        if not _may_be_small(input):
            return False
        work = input.numel() * weight.shape[0]
        if input.dtype is not torch.float32 and input.dtype.itemsize == 2:
            return work <= _LINEAR_16_BIT
        if torch.is_grad_enabled() and (weight.requires_grad or input.requires_grad):
            # The gradients of one row are outer products and a pass over W: memory, where torch is ahead.
            limits, others = _LINEAR_WITH_GRADIENTS
            return work <= limits.get(activation, others) or input.numel() == weight.shape[1]
        limits, others = _LINEAR
        return work <= (_LINEAR_DEEP if weight.shape[1] >= _DEEP else limits.get(activation, others))
    except (AttributeError, IndexError, TypeError):
        return False


def is_small_chain(input: Tensor, weights: Sequence[Tensor], activations: Sequence[str | None]) -> bool:
    """Whether torch should compute a chain of layers."""
    try:
        if not _may_be_small(input):
            return False
        rows = input.numel() // input.size(-1)
        with_gradients = torch.is_grad_enabled() and (weights[0].requires_grad or input.requires_grad)
        work = rows * max([weight.numel() for weight in weights])
        few = rows < _FEW_ROWS and work <= _FEW_ROWS_WORK
        if input.dtype.itemsize == 2:
            return few
        if not with_gradients:
            return few or (_fast_mkl and "tanh" in activations and work <= _CHAIN_WITH_GRADIENTS)
        slow = not _SLOW_IN_TORCH.isdisjoint(activations)
        return rows == 1 or work <= (_SLOW_CHAIN if slow else _CHAIN_WITH_GRADIENTS)
    except (AttributeError, IndexError, TypeError, ValueError, ZeroDivisionError):
        return False


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
    """Whether torch should compute the loss of class indices, without smoothing, weights and z-loss."""
    try:
        if _is_compiling() or _jit_state() is not None:
            return False
        limits = _CROSS_ENTROPY[input.size(1) < _FEW_CLASSES]
        with_gradient = torch.is_grad_enabled() and input.requires_grad
        if input.numel() >= limits[with_gradient]:
            return False
        if with_gradient and hasattr(input.grad_fn, PYTHON_NODE):
            return False  # the first node of a backward that is in Python takes 10 us, another 2
        return _may_be_small(input) and input.dim() == 2 and target.dim() == 1
    except (AttributeError, IndexError, TypeError):
        return False


def is_small_linear_cross_entropy(input: Tensor, linear_weight: Tensor) -> bool:
    """Whether torch should compute layer and loss."""
    try:
        limit = _LINEAR_CROSS_ENTROPY[linear_weight.size(0) < _FEW_CLASSES]
        return _may_be_small(input) and input.numel() * linear_weight.size(0) < limit
    except (AttributeError, IndexError, TypeError):
        return False
