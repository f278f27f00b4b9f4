"""Gram matrix of feature maps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastnn import _dispatch
from fastnn.ops import _cuda_limits
from fastnn.ops._cuda_linear import with_workspace
from fastnn.ops._function import NativeFunction
from fastnn.ops.sizes import SMALL, is_small_gram


def _features(op: str, input: Tensor) -> Tensor:
    """`input` as (B, C, L)."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{op}: input must be a Tensor, got {type(input).__name__}")
    if input.dim() not in (2, 3, 4):
        raise RuntimeError(
            f"{op}: input must have shape (C, L), (B, C, L) or (B, C, H, W), got {tuple(input.shape)}"
        )
    if input.dim() == 2:
        return input.unsqueeze(0)
    return input if input.dim() == 3 else input.flatten(2)


def _scale(features: Tensor, normalize: bool) -> float:
    """1, or 1 over the number of elements of one F; nan for an F without elements, as 0 / 0 is."""
    if not normalize:
        return 1.0
    count = features.shape[1] * features.shape[2]
    return 1.0 / count if count else float("nan")


def _forward(features: Tensor, normalize: bool) -> Tensor:
    batch, channels, _ = features.shape
    output = features.new_empty((batch, channels, channels))
    kernels = _dispatch.native(features)
    arguments = (features, _scale(features, normalize), output)
    if kernels == _dispatch.cpu:
        kernels.gram_forward(*arguments)
    else:
        with_workspace(kernels.gram_forward, features, *arguments, _float32_method(features))
    return output


def _float32_method(features: Tensor) -> int:
    """How float32 is multiplied on CUDA, always by fastnn: torch would compute both triangles."""
    _, channels, length = features.shape
    return _cuda_limits.choose(features.dtype, channels, channels, length)[1]


class GramFunction(NativeFunction):
    """Works on (B, C, L)."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, normalize: bool) -> Tensor:  # noqa: D102
        ctx.save_for_backward(features)
        ctx.normalize = normalize
        return _forward(features, normalize)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:  # noqa: D102
        (features,) = ctx.saved_tensors
        scale = _scale(features, ctx.normalize)
        if not _dispatch.use_native_backward("gram_backward", grad_output, features, cuda="gram_matrix"):
            return ((grad_output + grad_output.mT) @ features) * scale, None
        grad_input = torch.empty_like(features, memory_format=torch.contiguous_format)
        kernels = _dispatch.native(features)
        arguments = (grad_output, features, scale, grad_input)
        if kernels == _dispatch.cpu:
            kernels.gram_backward(*arguments)
        else:
            with_workspace(kernels.gram_backward, features, *arguments, _float32_method(features))
        return grad_input, None


def gram_matrix(input: Tensor, normalize: bool = False) -> Tensor:
    r"""Inner products of all pairs of channels (Gatys et al., "A Neural Algorithm of Artistic Style", 2015).

    .. math:: G = F F^\top \ [\,/\, (C L)\,],\qquad dF = (dG + dG^\top) F \ [\,/\, (C L)\,]

    Only one triangle is computed and then mirrored, so that G is exactly symmetric. 16-bit inputs are
    summed in float32.

    Args:
        input: ``(C, L)``, ``(B, C, L)`` or ``(B, C, H, W)`` with L = H W, any strides; float32, float64,
            bfloat16 or float16.
        normalize: divide by the number of elements of one F, that is C L.

    Returns:
        Tensor ``(C, C)`` for a two-dimensional input, else ``(B, C, C)``. With L = 0 it is zero (nan if
        ``normalize``).

    Raises:
        TypeError: ``input`` is not a Tensor.
        RuntimeError: ``input`` has another number of dimensions.
    """
    features = _features("gram_matrix", input)
    reason = SMALL if is_small_gram(features) else _dispatch.torch_reason(features, cuda="gram_matrix")
    if not _dispatch.decide("gram_matrix", reason):
        # Scaled before the product: a float16 sum could overflow where its mean does not.
        scale = _scale(features, normalize)
        scaled = features * scale if normalize else features
        output = torch.matmul(scaled, features.mT)
        if math.isnan(scale):
            output = output * scale  # which a product without terms did not apply
    elif torch.is_grad_enabled() and features.requires_grad:
        output = GramFunction.apply(features, normalize)
    else:
        output = _forward(features, normalize)
    return output.squeeze(0) if input.dim() == 2 else output
