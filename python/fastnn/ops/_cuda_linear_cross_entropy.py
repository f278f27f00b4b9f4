"""Linear classifier and cross-entropy on CUDA: layer, loss and gradients of one chunk of rows at a time.

Everything runs on torch's current stream and nothing waits for it, so that a CUDA graph can capture it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from fastnn.ops import _cuda_limits, _cuda_linear

# Rows of the largest tile of a product (csrc/gemm/cuda/plan.h): a chunk of 171 rows would take as long as one
# of 256.
TILE_ROWS = 128


# From this version on torch adds a product of 16-bit types to float32, on CUDA only. `addmm` has had
# `out_dtype` for longer, but required the addend in 16 bits, too (pytorch#167931).
ADDS_TO_FLOAT32_FROM = "2.11"


def whole_tiles(rows: int) -> int:
    """The most rows, up to `rows`, that leave no tile partly empty."""
    return rows // TILE_ROWS * TILE_ROWS or rows


def run(
    kernels: Any,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    loss: Tensor,
    grad_output: Tensor | None,
    wanted: Sequence[bool],
    options: tuple[int, int, float, float],
    rows: int,
    check_at_once: bool,
) -> tuple[list[Tensor | None], Tensor]:
    """Fill `loss`; return the wanted gradients and the tensor with the factor by which they must still be
    multiplied.

    The gradient of a chunk's logits is written over them. That of the input, of which each chunk has rows of
    its own, has the input's dtype; those of weight and bias, to which all chunks add, that of their sums.

    Args:
        kernels: the CUDA module.
        input: (N, K).
        linear_weight: (C, K).
        linear_bias: (C) or None.
        target: (N), contiguous.
        weight: (C), contiguous, or None.
        loss: a scalar, or one for each row.
        grad_output: one for each row, contiguous, or None.
        wanted: whether the gradients of input, linear_weight and linear_bias are.
        options: ignore_index, reduction, label_smoothing and z_loss.
        rows: of a chunk.
        check_at_once: whether to wait for the device, to raise what it finds in `target`.
    """
    device, dtype, batch = input.device, input.dtype, input.shape[0]
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    dx = torch.empty(input.shape, dtype=dtype, device=device) if wanted[0] else None
    dw = torch.zeros(linear_weight.shape, dtype=sums, device=device) if wanted[1] else None
    db = torch.zeros(linear_weight.shape[0], dtype=sums, device=device) if wanted[2] else None
    scratch = torch.empty(kernels.cross_entropy_scratch, dtype=torch.float64, device=device)
    buffer = torch.empty((min(rows, batch), linear_weight.shape[0]), dtype=dtype, device=device)
    for begin in range(0, batch, rows):
        chunk = slice(begin, min(begin + rows, batch))
        x, logits = input[chunk], buffer[: chunk.stop - begin]
        gradient = logits if any(wanted) else None
        _cuda_linear.forward(kernels, x, linear_weight, linear_bias, None, logits, None)
        kernels.cross_entropy_chunk(
            logits, begin, target, weight, loss, gradient, *options, scratch, check_at_once
        )
        if grad_output is not None:
            kernels.cross_entropy_scale_gradient(logits, grad_output[chunk], scratch)
        if dx is not None:
            _cuda_linear.backward(kernels, logits, None, None, None, linear_weight, dx[chunk], None, None)
        _add_parameter_gradients(kernels, logits, x, dw, db)
    return [dx, dw, db], scratch


def adds_to_float32(device: torch.device) -> bool:
    """Whether torch's `addmm` adds a product of 16-bit types to float32 there."""
    return device.type == "cuda" and TorchVersion(torch.__version__) >= ADDS_TO_FLOAT32_FROM


def _add_parameter_gradients(
    kernels: Any, gradient: Tensor, x: Tensor, dw: Tensor | None, db: Tensor | None
) -> None:
    """Add the contribution of a chunk to the gradients."""
    if dw is not None:
        torch_product, float32 = _cuda_limits.choose(x.dtype, *gradient.shape, x.shape[1])
        # If torch does not add it to float32, its product of 16-bit types is rounded before it is added.
        if not torch_product or not (dw.dtype == x.dtype or adds_to_float32(dw.device)):
            _cuda_linear.with_workspace(kernels.linear_add_gradients, x, gradient, x, dw, db, float32)
            return
        if dw.dtype == x.dtype:
            dw.addmm_(gradient.t(), x)
        else:
            torch.addmm(dw, gradient.t(), x, out_dtype=dw.dtype, out=dw)
    if db is not None:
        db.add_(gradient.sum(0, dtype=db.dtype))
