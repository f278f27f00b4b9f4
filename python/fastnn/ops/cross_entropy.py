"""Softmax cross-entropy, forward and gradient in one fused pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn import _dispatch
from fastnn._torch_internals import legacy_reduction
from fastnn.ops._function import NativeFunction, refused
from fastnn.ops.sizes import SMALL, is_small_cross_entropy

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
_INDEX_DTYPES = frozenset({torch.int64, torch.uint8})


def torchs_target(target: Tensor) -> Tensor:
    """Torch accepts uint8 for some shapes only, and reads -100 as 156."""
    return target.long() if isinstance(target, Tensor) and target.dtype is torch.uint8 else target


def cross_entropy_torch(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
) -> Tensor:
    """:func:`cross_entropy` in torch ops: the fallback, and what double backward differentiates."""
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    target = torchs_target(target)
    loss = F.cross_entropy(
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    if z_loss == 0.0:
        return loss
    # 16-bit types would overflow in the square.
    wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    square = z_loss * torch.logsumexp(wide, dim=0 if input.dim() == 1 else 1).square()
    count: Tensor | int = square.numel()
    if not target.is_floating_point():
        counted = (target != ignore_index).view_as(square)
        square = torch.where(counted, square, 0.0)
        count = counted.sum()
    if reduction == "none":
        return loss + square.to(loss.dtype).view_as(loss)
    total = square.sum()
    return loss + (total / count if reduction == "mean" else total).to(loss.dtype)


def checked_number(op: str, name: str, value: Any) -> float:
    """The option `name` as a float; TypeError where it is no number."""
    if not hasattr(value, "__float__"):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    if getattr(value, "ndim", 0) != 0:
        raise TypeError(
            f"{op}: {name} must be a number, got {type(value).__name__} of shape {tuple(value.shape)}"
        )
    return float(value)


Options = tuple[int, str, float, float]  # ignore_index, reduction, label_smoothing and z_loss


def _twin(input: Tensor, target: Tensor, weight: Tensor | None, options: Options) -> Tensor:
    ignore_index, reduction, label_smoothing, z_loss = options
    return cross_entropy_torch(
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )


class CrossEntropyFunction(NativeFunction):
    """Writes the gradient of the logits together with the loss; the first backward consumes it.

    The gradient is kept as an attribute, not with `save_for_backward`: backward hands over its only
    reference, so that autograd can accumulate it without a copy. A later backward computes it again.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        options: Options,
    ) -> Tensor:
        ctx.save_for_backward(input, target, weight)
        ctx.options = options
        ctx.gradient = torch.empty_like(input, memory_format=torch.contiguous_format)
        loss, ctx.scale = _run(input, target, weight, ctx.gradient, *ctx.options)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        native = _dispatch.use_native_backward("cross_entropy_backward", grad_output, cuda="cross_entropy")
        gradient, ctx.gradient = ctx.gradient, None
        if torch.is_grad_enabled():
            return _torch_gradient(ctx, grad_output), None, None, None
        if gradient is None:
            input, target, weight = ctx.saved_tensors
            gradient = torch.empty_like(input, memory_format=torch.contiguous_format)
            _run(input, target, weight, gradient, *ctx.options)
        if native:
            kernels = _dispatch.native(gradient)
            kernels.cross_entropy_scale_gradient(gradient, grad_output.contiguous(), ctx.scale)
        else:
            if grad_output.dim() and gradient.dim() > 1:
                grad_output = grad_output.unsqueeze(1)
            # On CUDA the factor is the kernel's first scratch value.
            scale = ctx.scale[0] if isinstance(ctx.scale, Tensor) else ctx.scale
            gradient = gradient * (grad_output * scale)
        return gradient, None, None, None


def _torch_gradient(ctx: Any, grad_output: Tensor) -> Tensor:
    """Return the gradient as a differentiable function of the logits and of `grad_output`."""
    input, target, weight = ctx.saved_tensors
    loss = _twin(input, target, weight, ctx.options)
    gradient: Tensor = torch.autograd.grad(loss, input, grad_output, create_graph=True)[0]
    return gradient


def _run(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    gradient: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
) -> tuple[Tensor, Any]:
    """Fill `gradient`, if given; return the loss and the tensor with the factor by which the gradient must
    still be multiplied."""
    if reduction != "none" or input.dim() < 2:
        loss = input.new_empty_strided((), ())  # parsed in two thirds of the time of new_empty(())
    else:
        loss = input.new_empty(input.shape[:1] + input.shape[2:])
    # The kernel takes rows of any stride if their elements are adjacent.
    rows = input if input.dim() == 2 and input.stride(1) == 1 else input.contiguous()
    arguments = (
        rows,
        target.contiguous(),
        weight if weight is None else weight.contiguous(),
        loss,
        gradient,
        ignore_index,
        REDUCTIONS[reduction],
        label_smoothing,
        z_loss,
    )
    kernels = _dispatch.native(rows)
    if kernels == _dispatch.cpu:
        return loss, kernels.cross_entropy_forward(*arguments)
    # Values that depend on the targets stay on the device.
    scratch = torch.empty(kernels.cross_entropy_scratch, dtype=torch.float64, device=rows.device)
    kernels.cross_entropy_forward(*arguments, scratch, _dispatch.check_at_once)
    return loss, scratch


def cross_entropy_reason(
    input: Tensor,
    target: object,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    cuda: str | None = None,
) -> str | None:
    """Why torch must compute this loss, or None if the native kernel may (`cuda` as in `torch_reason`)."""
    if not isinstance(target, Tensor):
        return f"{type(target).__name__} is not a tensor"
    probabilities = target.is_floating_point()
    reason = _dispatch.torch_reason(input, weight, target if probabilities else None, cuda=cuda)
    if reason is not None:
        return reason
    if torch.is_grad_enabled():
        if weight is not None and weight.requires_grad:
            return "the class weight requires grad"
        if probabilities and target.requires_grad:
            return "the target requires grad"
    if type(ignore_index) is not int or not -(2**63) <= ignore_index < 2**63:
        return f"ignore_index={ignore_index!r}"
    if not probabilities:
        if type(target) is not Tensor:
            return f"{type(target).__name__} is a tensor subclass"
        same_device = target.is_cpu if input.is_cpu else target.device == input.device
        if not same_device or target.layout is not torch.strided:
            return f"a target on {target.device.type} with layout {target.layout}"
        if target.dtype not in _INDEX_DTYPES or target.is_neg():
            return f"no kernels for a target of {target.dtype}"
        if input.dim() == 1 and target.dim() == 1:
            return "a target of shape (1,) for one row"
    elif ignore_index >= 0:
        return "ignore_index with class probabilities"
    if not 0.0 <= label_smoothing <= 1.0:
        return f"label_smoothing={label_smoothing}"
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        return f"reduction={reduction!r}"
    if input.numel() == 0 or not 1 <= input.dim() <= 8:
        return f"input of shape {tuple(input.shape)}"
    return None


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
) -> Tensor:
    r"""Softmax cross-entropy of logits, with optional smoothing, class weights and z-loss.

    For a row :math:`x` of :math:`C` logits, :math:`\mathrm{lse} = \log\sum_k e^{x_k}`, class weights
    :math:`w` (1 without ``weight``) and smoothing :math:`\varepsilon`, with a class index :math:`y` or
    class probabilities :math:`t`:

    .. math::
        \ell &= (1-\varepsilon)\, w_y (\mathrm{lse} - x_y)
                + \tfrac{\varepsilon}{C} \sum_k w_k (\mathrm{lse} - x_k) + z\,\mathrm{lse}^2 \\
        \ell &= \sum_k w_k \bigl((1-\varepsilon)\, t_k + \tfrac{\varepsilon}{C}\bigr) (\mathrm{lse} - x_k)
                + z\,\mathrm{lse}^2

    ``"mean"`` divides the loss by the sum of :math:`w_y` over the rows that are not ignored (class
    probabilities: by the number of rows) and the z-loss by the number of rows that are not ignored;
    ``"sum"`` does not divide. Losses are summed in float64; 16-bit types are computed in float32. Rows with
    ``ignore_index`` have loss and gradient 0, whatever their logits and weights are.

    If ``input`` requires grad, the same pass writes the gradient of the logits, as large as ``input``.

    On the CPU subnormal numbers are flushed to zero with class indices and no class weights, and when the
    gradient is multiplied by the incoming one.

    Args:
        input: logits (C), (N, C) or (N, C, d1, ...); float32, float64, bfloat16 or float16, any strides.
        target: class indices (), (N) or (N, d1, ...) of int64 or uint8; or class probabilities of the shape
            and dtype of ``input``.
        weight: (C), of the dtype of ``input``.
        size_average: deprecated, see ``reduction``.
        ignore_index: index of rows to ignore; only with class indices.
        reduce: deprecated, see ``reduction``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        label_smoothing: :math:`\varepsilon` in [0, 1].
        z_loss: :math:`z`, weight of the squared log-sum-exp (Liger-Kernel's ``lse_square_scale``).

    Returns:
        Scalar; with ``"none"`` one loss per row, in the shape of the class indices.

    Raises:
        IndexError: an index is neither in [0, C) nor ``ignore_index``. On CUDA the loss is NaN then, and the
            next call raises; with FASTNN_CHECK=1 in the environment this call waits and raises.
        TypeError: ``label_smoothing`` or ``z_loss`` is not a number.
        ValueError: the batch sizes of ``input`` and ``target`` differ; an unknown ``reduction``.
        RuntimeError: other shapes or dtypes that do not match; ``label_smoothing`` outside [0, 1].
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    if type(label_smoothing) is not float or type(z_loss) is not float:
        label_smoothing = checked_number("cross_entropy", "label_smoothing", label_smoothing)
        z_loss = checked_number("cross_entropy", "z_loss", z_loss)
    # With options, torch needs several ops.
    if weight is None and not (label_smoothing or z_loss) and is_small_cross_entropy(input, target):
        _dispatch.decide("cross_entropy", SMALL)
        return F.cross_entropy(input, torchs_target(target), ignore_index=ignore_index, reduction=reduction)
    options = (ignore_index, reduction, label_smoothing, z_loss)
    reason = cross_entropy_reason(
        input, target, weight, ignore_index, reduction, label_smoothing, cuda="cross_entropy"
    )
    if not _dispatch.decide("cross_entropy", reason):
        return _twin(input, target, weight, options)
    try:
        if torch.is_grad_enabled() and input.requires_grad:
            loss: Tensor = CrossEntropyFunction.apply(input, target, weight, options)
            return loss
        return _run(input, target, weight, None, *options)[0]
    except (RuntimeError, ValueError) as error:
        return refused("cross_entropy", error, lambda: _twin(input, target, weight, options))
