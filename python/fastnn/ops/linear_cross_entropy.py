"""Linear classifier and softmax cross-entropy in one op, without the logits of the batch in memory."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import _dispatch
from fastnn._torch_internals import version_of
from fastnn.ops import _cuda_linear_cross_entropy
from fastnn.ops._function import NativeFunction, needed_gradients, refused
from fastnn.ops.cross_entropy import (
    REDUCTIONS,
    checked_number,
    cross_entropy_reason,
    cross_entropy_torch,
    torchs_target,
)
from fastnn.ops.sizes import SMALL, is_small_linear_cross_entropy

# Logits of a chunk of rows. Each chunk reads the weight twice and, but for the first, reads and writes its
# gradient: for each value of the weight 6 operations a row and about 20 bytes, so that chunks of well over a
# hundred rows keep a machine of 10 operations a byte computing. With 32000 classes in float32 these are 196
# rows; with 1024 rows in all, the buffer is a twelfth of what torch holds there at its peak.
CHUNK_BYTES = 24 << 20
# With even more classes, memory traffic would dominate below this many rows.
MIN_CHUNK_ROWS = 64


def chunk_rows(classes: int, dtype: torch.dtype) -> int:
    """Return the most rows whose logits are in memory at a time."""
    return max(CHUNK_BYTES // (classes * dtype.itemsize), MIN_CHUNK_ROWS)


def linear_cross_entropy_torch(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """:func:`linear_cross_entropy` in torch ops: the fallback, and what double backward differentiates."""
    outputs = linear_weight.shape[:-1]
    matrix = linear_weight.reshape(math.prod(outputs), linear_weight.shape[-1])
    logits = F.linear(input, matrix, None if linear_bias is None else linear_bias.reshape(-1))
    return cross_entropy_torch(
        logits.reshape(*input.shape[:-1], *outputs),
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )


class LinearCrossEntropyFunction(NativeFunction):
    """Computes the gradients together with the loss, chunk by chunk; the first backward consumes them.

    With reduction "none" the gradients need `grad_output`: backward then computes the logits again, as a
    second backward does with any reduction. Gradients are kept as attributes, not with `save_for_backward`,
    so that backward hands over the only reference. What else is saved is version-checked if the logits are
    computed again, and may be changed in place otherwise. The bias, from which torch computes no gradient,
    may always be changed before the first backward: "none" keeps a copy.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor:
        ctx.options, ctx.dtype = options, input.dtype
        rowwise = options["reduction"] == "none"
        copy = linear_bias.clone() if rowwise and linear_bias is not None else None
        ctx.save_for_backward(input, linear_weight, copy, target, weight)
        ctx.bias = None if linear_bias is None else (linear_bias, version_of(linear_bias))
        wanted = (False,) * 3 if rowwise else ctx.needs_input_grad[:3]
        loss, gradients, ctx.scale = _run(input, linear_weight, linear_bias, target, weight, options, wanted)
        ctx.gradients = None if rowwise else gradients
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        native = _dispatch.use_native_backward(
            "linear_cross_entropy_backward", grad_output, cuda="linear_cross_entropy"
        )
        gradients, ctx.gradients = ctx.gradients, None
        rowwise = ctx.options["reduction"] == "none"
        if torch.is_grad_enabled() or (rowwise and not native):
            return (*_torch_gradients(ctx, grad_output), None, None, None)
        if gradients is None:
            input, linear_weight, bias_copy, target, weight = ctx.saved_tensors
            wanted = (needed_gradients(ctx) if native else ctx.needs_input_grad)[:3]
            factors = grad_output.contiguous() if rowwise else None
            bias = bias_copy if rowwise else _unchanged_bias(ctx)
            _, gradients, ctx.scale = _run(
                input, linear_weight, bias, target, weight, ctx.options, wanted, factors
            )
        if not rowwise:
            if not native:
                factor = grad_output if ctx.scale is None else grad_output * ctx.scale[0]
                gradients = [None if g is None else g * factor for g in gradients]
            elif ctx.scale is not None:
                kernels = _dispatch.native(grad_output)
                for g in gradients:
                    if g is not None:
                        kernels.cross_entropy_scale_gradient(g, grad_output.to(g.dtype), ctx.scale)
            elif grad_output.item() != 1:
                gradients = [None if g is None else g.mul_(grad_output) for g in gradients]
        return (*(None if g is None else g.to(ctx.dtype) for g in gradients), None, None, None)


def _unchanged_bias(ctx: Any) -> Tensor | None:
    if ctx.bias is None:
        return None
    bias: Tensor
    bias, version = ctx.bias
    if version_of(bias) != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"linear_cross_entropy's linear_bias is at version {version_of(bias)}; "
            f"expected version {version} instead"
        )
    return bias


def _torch_gradients(ctx: Any, grad_output: Tensor) -> list[Tensor | None]:
    """Return the gradients as differentiable functions of the inputs and of `grad_output`."""
    differentiable = torch.is_grad_enabled()
    input, linear_weight, _, target, weight = ctx.saved_tensors
    linear_bias = _unchanged_bias(ctx)
    with torch.enable_grad():
        loss = linear_cross_entropy_torch(
            input, linear_weight, target, linear_bias=linear_bias, weight=weight, **ctx.options
        )
    wanted = ctx.needs_input_grad[:3]
    inputs = [t for t, needed in zip((input, linear_weight, linear_bias), wanted, strict=True) if needed]
    found = iter(torch.autograd.grad(loss, inputs, grad_output, create_graph=differentiable))
    return [next(found) if needed else None for needed in wanted]


def _run(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    options: dict[str, Any],
    wanted: tuple[bool, ...],
    grad_output: Tensor | None = None,
) -> tuple[Tensor, list[Tensor | None], Tensor | None]:
    """Return the loss, the wanted gradients of input, linear_weight and linear_bias, and on CUDA a tensor
    with, as its first element, a factor by which they must still be multiplied.

    Gradients are in the type that sums: float32 for 16-bit types, so that neither the chunks nor a factor
    applied in backward are rounded or flushed to zero in 16 bits.
    """
    loss = input.new_empty(target.shape if options["reduction"] == "none" else ())
    target, weight = target.contiguous(), None if weight is None else weight.contiguous()
    numbers = (
        options["ignore_index"],
        REDUCTIONS[options["reduction"]],
        options["label_smoothing"],
        options["z_loss"],
    )
    rows = chunk_rows(linear_weight.shape[0], input.dtype)
    kernels = _dispatch.native(input)
    if kernels != _dispatch.cpu:
        gradients, scale = _cuda_linear_cross_entropy.run(
            kernels,
            *(input, linear_weight, linear_bias, target, weight, loss, grad_output, wanted, numbers),
            _cuda_linear_cross_entropy.whole_tiles(rows),
            _dispatch.check_at_once,
        )
        return loss, gradients, scale
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    gradients = [
        torch.empty(t.shape, dtype=dtype, device=t.device) if t is not None and needed else None
        for t, needed in zip((input, linear_weight, linear_bias), wanted, strict=True)
    ]
    kernels.linear_cross_entropy(
        input, linear_weight, linear_bias, target, weight, loss, grad_output, *gradients, *numbers, rows
    )
    return loss, gradients, None


def _check(input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None) -> None:
    """Raise unless types and shapes fit: with torch's message, if it has one, and what was expected."""
    op = "linear_cross_entropy"
    for name, t in (("input", input), ("linear_weight", linear_weight), ("target", target)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, got {type(t).__name__}")
    if linear_bias is not None and not isinstance(linear_bias, Tensor):
        raise TypeError(f"{op}: linear_bias must be a Tensor, got {type(linear_bias).__name__}")
    batch, outputs = tuple(input.shape[:-1]), tuple(linear_weight.shape[:-1])
    if input.dim() == 0:
        raise RuntimeError(
            "expected input with dimensionality 1 or 2, got 0\n"
            f"{op}: expected input (*, K), got {_shapes(input, linear_weight)}"
        )
    if linear_weight.dim() < 2:
        raise RuntimeError(
            f"expected linear_weight with dimensionality at least 2, got {linear_weight.dim()}\n"
            f"{op}: expected linear_weight (C, K), got {_shapes(input, linear_weight)}"
        )
    if input.shape[-1] != linear_weight.shape[-1]:
        raise RuntimeError(
            "expected equal input and linear_weight last dimensions (in_features), got "
            f"{input.shape[-1]} and {linear_weight.shape[-1]}, respectively\n"
            f"{op}: input has K={input.shape[-1]}, linear_weight expects {linear_weight.shape[-1]}"
        )
    if linear_bias is not None and linear_bias.shape != outputs:
        got = tuple(linear_bias.shape)
        raise RuntimeError(
            f"expected linear_bias shape {outputs}, got {got}\n"
            f"{op}: linear_bias has shape {got}, expected {outputs}"
        )
    if len(outputs) > 1:
        if not batch:
            raise RuntimeError(
                f"K-dimensional loss defined by linear_weight shape {tuple(linear_weight.shape)} requires "
                f"batched input, (N, {input.shape[-1]}), "
                f"got unbatched input with shape {tuple(input.shape)}\n"
                f"{op}: expected input (N, K), got {_shapes(input, linear_weight)}"
            )
        if len(batch) > 1:
            raise RuntimeError(
                f"expected input with dimensionality 1 or 2, got {input.dim()}\n"
                f"{op}: expected input (N, K), got {_shapes(input, linear_weight)}"
            )
    elif target.shape not in (batch, batch + outputs):
        expected = (
            f"{op}: target has shape {tuple(target.shape)}, expected class indices {batch} or class "
            f"probabilities {batch + outputs}"
        )
        if len(batch) > 1:
            raise RuntimeError(f"expected input with dimensionality 1 or 2, got {input.dim()}\n{expected}")
        raise _target_error(input, linear_weight, target, expected)


def _shapes(input: Tensor, linear_weight: Tensor) -> str:
    return f"input {tuple(input.shape)} and linear_weight {tuple(linear_weight.shape)}"


def _target_error(input: Tensor, linear_weight: Tensor, target: Tensor, expected: str) -> Exception:
    """Torch's error for a target for logits of this shape."""
    logits = input.new_zeros((*input.shape[:-1], linear_weight.shape[0]))
    try:
        F.cross_entropy(logits, target)
    except (RuntimeError, ValueError) as error:
        return type(error)(f"{error}\n{expected}")
    return RuntimeError(expected)


def _torch_reason(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    options: dict[str, Any],
) -> str | None:
    if linear_weight.dim() > 2:
        return "linear_weight is not a matrix"
    if target.is_floating_point():
        return "class probabilities"
    if linear_weight.numel() == 0:
        return f"linear_weight of shape {tuple(linear_weight.shape)}"
    reason = _dispatch.torch_reason(input, linear_weight, linear_bias, weight, cuda="linear_cross_entropy")
    if reason is not None:
        return reason
    tensors = (input, linear_weight, linear_bias, target, weight)
    if torch.is_grad_enabled() and any(t is not None and t.is_inference() for t in tensors):
        return "torch guards what it saves of inference tensors"
    return cross_entropy_reason(
        input,
        target,
        weight,
        options["ignore_index"],
        options["reduction"],
        options["label_smoothing"],
        cuda="linear_cross_entropy",
    )


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: object = None,
    z_loss: float = 0.0,
) -> Tensor:
    r"""Softmax cross-entropy of a linear layer, whose logits are never all in memory at once.

    .. math:: \ell = \operatorname{cross\_entropy}(x W^\top + b,\ y)

    with the loss of :func:`fastnn.functional.cross_entropy` and the names of torch 2.13's function. The
    logits are computed for one chunk of rows at a time (24 MiB, but at least 64 rows), their gradient is
    written over them, and, if gradients are needed, the chunk's part of

    .. math:: dX = g W,\quad dW = g^\top x,\quad db = \textstyle\sum g,\qquad g = \partial\ell / \partial z

    is added in the same pass, so that backward only multiplies by ``grad_output``. Reduction ``"none"`` and a
    second backward compute the logits again in backward. For 16-bit types gradients are summed in float32
    and kept like that until backward, which takes twice the memory of the gradients themselves; on CUDA only
    those of weight and bias, while that of the input is rounded when a chunk writes it. On CUDA chunks are
    multiples of 128 rows where possible, and nothing waits for the device.

    Args:
        input: ``(K)``, ``(N, K)`` or ``(*, K)`` (torch: at most two dimensions), any strides; float32,
            float64, bfloat16 or float16.
        linear_weight: ``(C, K)``, of the dtype of ``input``. ``(C, d1, ..., K)`` with ``input`` ``(N, K)``
            and targets ``(N, d1, ...)`` runs as torch ops.
        target: class indices of the shape of ``input`` without K, int64 or uint8; class probabilities, with C
            where ``input`` has K, run as torch ops.
        linear_bias: ``(C)`` or None.
        weight: class weights ``(C)`` or None.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        ignore_index: index of rows to ignore; None means -100.
        label_smoothing: in [0, 1].
        options: how torch divides the batch; accepted so that calls written for torch work, and not used.
        z_loss: weight of the squared log-sum-exp.

    Returns:
        Scalar; with ``"none"`` one loss per row, in the shape of the class indices.

    Raises:
        IndexError: an index is neither in [0, C) nor ``ignore_index``. On CUDA the loss is NaN then, and the
            next call raises; with FASTNN_CHECK=1 in the environment this call waits and raises.
        TypeError: one of the required arguments is not a Tensor; ``label_smoothing`` or ``z_loss`` is not a
            number.
        ValueError: the batch sizes of ``input`` and ``target`` differ; an unknown ``reduction``.
        RuntimeError: other shapes or dtypes that do not match; ``label_smoothing`` outside [0, 1];
            ``ignore_index`` together with class probabilities.
    """
    if type(label_smoothing) is not float or type(z_loss) is not float:
        label_smoothing = checked_number("linear_cross_entropy", "label_smoothing", label_smoothing)
        z_loss = checked_number("linear_cross_entropy", "z_loss", z_loss)
    is_plain = weight is None and not (label_smoothing or z_loss)
    if is_plain and is_small_linear_cross_entropy(input, linear_weight, linear_bias, target):
        _dispatch.decide("linear_cross_entropy", SMALL)
        index = -100 if ignore_index is None else ignore_index
        logits = F.linear(input, linear_weight, linear_bias)
        return F.cross_entropy(logits, torchs_target(target), ignore_index=index, reduction=reduction)
    _check(input, linear_weight, target, linear_bias)
    if target.is_floating_point() and ignore_index is not None:
        raise RuntimeError(
            "ignore_index cannot be specified when target contains probabilities\n"
            f"linear_cross_entropy: ignore_index={ignore_index} is given, but target has class probabilities"
        )
    loss_options: dict[str, Any] = {
        "reduction": reduction,
        "ignore_index": -100 if ignore_index is None else ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
    }
    batch = input.shape[:-1]
    if linear_weight.dim() == 2 and len(batch) != 1:
        input = input.reshape(batch.numel(), input.shape[-1])
        target = target.reshape(batch.numel(), *target.shape[len(batch) :])

    def twin() -> Tensor:
        return linear_cross_entropy_torch(
            input, linear_weight, target, linear_bias=linear_bias, weight=weight, **loss_options
        )

    reason = _torch_reason(input, linear_weight, linear_bias, target, weight, loss_options)
    if _dispatch.decide("linear_cross_entropy", reason):
        try:
            loss = _native(input, linear_weight, linear_bias, target, weight, loss_options)
        except (RuntimeError, ValueError) as error:
            loss = refused("linear_cross_entropy", error, twin)
    else:
        loss = twin()
    return loss.view(batch) if reduction == "none" and linear_weight.dim() == 2 else loss


def _native(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    arguments = (input, linear_weight, linear_bias, target, weight, options)
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (input, linear_weight, linear_bias)
    ):
        loss: Tensor = LinearCrossEntropyFunction.apply(*arguments)
        return loss
    return _run(*arguments, (False,) * 3)[0]
