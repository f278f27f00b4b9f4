"""What training loops take from :mod:`torch.nn.utils`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fastnn import _dispatch

__all__ = ["clip_grad_norm_"]


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    r"""Scale gradients down, in place, if their global norm exceeds a bound.

    .. math:: g \leftarrow g \cdot \min\!\left(1, \frac{\text{max\_norm}}{\lVert g \rVert + 10^{-6}}\right)

    with :math:`g` all gradients as one vector. Drop-in for :func:`torch.nn.utils.clip_grad_norm_`, with the
    same arguments, defaults and result.

    It is one native call if the norm is of type 2 and all gradients have one dtype (float32, float64,
    bfloat16 or float16), each fills one block of memory, none shares it, and all are on the CPU or on one
    CUDA device. Anything else is left to torch. The squares are summed in float64, so that no square
    overflows or vanishes in float32, and always in the same order. If the norm does not exceed the bound,
    the gradients are not written to. On CUDA the factor is computed and read on the device, and nothing
    waits for it unless ``error_if_nonfinite`` is set.

    Args:
        parameters: a tensor, or tensors, whose ``grad`` is clipped; those without one are skipped.
        max_norm: the bound.
        norm_type: the type of the p-norm, ``inf`` for the largest absolute value.
        error_if_nonfinite: raise an error if the norm is NaN or infinite, and change no gradient. Without
            it, an infinite norm turns finite gradients into 0 and infinite ones into NaN, and a norm of NaN
            turns all of them into NaN.
        foreach: as in torch; makes no difference to the native call.

    Returns:
        The norm before clipping, a scalar tensor with the device and dtype of the gradients.

    Raises:
        RuntimeError: the norm is not finite, and ``error_if_nonfinite`` is set.

    Source: Pascanu et al., `On the Difficulty of Training Recurrent Neural Networks
    <https://proceedings.mlr.press/v28/pascanu13.html>`_.
    """
    listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    grads = [p.grad for p in listed if p.grad is not None]  # torch.compile cannot trace := in here
    norm = _clip_natively(grads, max_norm, norm_type, error_if_nonfinite)
    if _dispatch.decide("clip_grad_norm", None if isinstance(norm, Tensor) else norm):
        assert isinstance(norm, Tensor)
        return norm
    return torch.nn.utils.clip_grad_norm_(
        listed or parameters,  # torch warns about an empty generator
        max_norm,
        norm_type,
        error_if_nonfinite,
        foreach,
    )


def _clip_natively(
    grads: list[Tensor], max_norm: float, norm_type: float, error_if_nonfinite: bool
) -> Tensor | str:
    """The norm; or, with nothing changed, why torch must clip."""
    if float(norm_type) != 2:
        return f"the norm is of type {norm_type}"
    if not grads:
        return "there is no gradient"
    first = grads[0]
    # The native call itself checks its arguments, all of them on the CPU.
    reason = (
        _dispatch.torch_reason() if first.is_cpu else _dispatch.torch_reason(first, cuda="clip_grad_norm")
    )
    if reason is not None:
        return reason
    kernels = _dispatch.native(first)
    norm: Tensor | str = kernels.clip_grad_norm(grads, float(max_norm), bool(error_if_nonfinite))
    if isinstance(norm, str):
        return norm
    if error_if_nonfinite and kernels != _dispatch.cpu and not norm.isfinite():
        return "the norm is not finite"
    increment_version(grads)
    return norm
