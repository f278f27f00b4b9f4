"""Layer, batch and group normalisation."""

from __future__ import annotations

from collections.abc import Sequence

from fastnn._dispatch import Unsupported
from fastnn.capture.ir import View, contiguous_strides
from fastnn.capture.lowering.layout import (
    FLOATING,
    contiguous,
    contiguous_result,
    copy,
    need,
    need_same_dtype,
)
from fastnn.capture.lowering.table import Lowering, lowers


def _need(*views: View | None) -> None:
    given = [view for view in views if view is not None]
    need(given, FLOATING)
    need_same_dtype(*given)


def _present(low: Lowering, *views: View | None) -> list[View]:
    return [contiguous(low, view) for view in views if view is not None]


class _Results:
    """Contiguous memory for results, and the copies from there to the results."""

    def __init__(self, low: Lowering, *outs: View | None) -> None:
        self._low = low
        self._outs = [out for out in outs if out is not None]
        self.views = [contiguous_result(low, out) for out in self._outs]

    def finish(self) -> None:
        for out, view in zip(self._outs, self.views, strict=True):
            copy(self._low, out, view)


@lowers("native_layer_norm.default")
def _layer_norm(
    low: Lowering,
    outs: Sequence[View],
    x: View,
    normalized_shape: Sequence[int],
    weight: View | None,
    bias: View | None,
    eps: float,
) -> None:
    _need(*outs, x, weight, bias)
    if 0 in normalized_shape:
        raise Unsupported("rows without elements")
    ins = _present(low, x, weight, bias)
    results = _Results(low, *outs)
    low.emit("layer_norm", results.views, ins, [eps], [weight is not None, bias is not None])
    results.finish()


def _wanted(outs: Sequence[View | None], output_mask: Sequence[bool]) -> tuple[list[View], int]:
    """The requested gradients, and the kernels' code for them."""
    wanted, code = [], 0
    for nth, (out, asked) in enumerate(zip(outs, output_mask, strict=True)):
        if asked and out is not None:
            wanted.append(out)
            code |= 1 << nth
    return wanted, code


_HAS_WEIGHT, _TRAINING = 8, 16


@lowers("native_layer_norm_backward.default")
def _layer_norm_backward(
    low: Lowering,
    outs: Sequence[View | None],
    grad: View,
    x: View,
    normalized_shape: Sequence[int],
    mean: View,
    rstd: View,
    weight: View | None,
    bias: View | None,
    output_mask: Sequence[bool],
) -> None:
    wanted, code = _wanted(outs, output_mask)
    _need(*wanted, grad, x, mean, rstd, weight)
    if 0 in normalized_shape:
        raise Unsupported("rows without elements")
    if not wanted:
        return
    length = 1
    for n in normalized_shape:
        length *= n
    ins = _present(low, grad, x, mean, rstd, weight)
    results = _Results(low, *wanted)
    code |= _HAS_WEIGHT if weight is not None else 0
    low.emit("layer_norm_backward", results.views, ins, code=[code, length])
    results.finish()


def _channels_inside(x: View) -> bool:
    """Whether channels are adjacent in memory, as in `torch.channels_last`."""
    return len(x.shape) > 2 and not x.is_contiguous and _moved(x).is_contiguous


def _moved(x: View) -> View:
    """With the channels as the last dimension."""
    return x.with_shape((x.shape[0], *x.shape[2:], x.shape[1]), (x.strides[0], *x.strides[2:], x.strides[1]))


def _as_columns(x: View) -> View:
    """A tensor for which `_channels_inside` holds, as a matrix with one column per channel."""
    channels = x.shape[1]
    shape = (x.numel // channels, channels)
    return x.with_shape(shape, contiguous_strides(shape))


def _need_channels(x: View) -> None:
    if len(x.shape) < 2:
        raise Unsupported("no dimension of channels")
    if x.numel == 0:
        raise Unsupported("no values")


def _batch_norm(
    low: Lowering,
    outs: Sequence[View],
    x: View,
    weight: View | None,
    bias: View | None,
    running_mean: View | None,
    running_var: View | None,
    training: bool,
    momentum: float,
    eps: float,
) -> None:
    y = outs[0]
    saved = list(outs[1:3]) if training else []
    _need(y, *saved, x, weight, bias, running_mean, running_var)
    _need_channels(x)
    running = [view for view in (running_mean, running_var) if view is not None]
    if len(running) == 1 or not (training or running):
        raise Unsupported("half of the running statistics, or none to normalise by")
    if any(not view.is_contiguous for view in [*running, *saved]):
        raise Unsupported("statistics that are not contiguous")
    columns = _channels_inside(x) and _channels_inside(y)
    x, y = (_as_columns(x), _as_columns(y)) if columns else (x, y)
    ins = _present(low, x, weight, bias) + running
    results = _Results(low, y)
    updated = running if training else []
    code = [training, bool(updated), weight is not None, bias is not None]
    low.emit("batch_norm", [*results.views, *saved, *updated], ins, [eps, momentum], code)
    results.finish()


@lowers("native_batch_norm.default", "_native_batch_norm_legit.default")
def _native_batch_norm(
    low: Lowering,
    outs: Sequence[View],
    x: View,
    weight: View | None,
    bias: View | None,
    running_mean: View | None,
    running_var: View | None,
    training: bool,
    momentum: float,
    eps: float,
) -> None:
    _batch_norm(low, outs, x, weight, bias, running_mean, running_var, training, momentum, eps)


@lowers("_native_batch_norm_legit.no_stats")
def _native_batch_norm_without(
    low: Lowering,
    outs: Sequence[View],
    x: View,
    weight: View | None,
    bias: View | None,
    training: bool,
    momentum: float,
    eps: float,
) -> None:
    _batch_norm(low, outs, x, weight, bias, None, None, training, momentum, eps)


@lowers("_batch_norm_with_update.default")
def _batch_norm_with_update(
    low: Lowering,
    outs: Sequence[View],
    x: View,
    weight: View | None,
    bias: View | None,
    running_mean: View,
    running_var: View,
    momentum: float,
    eps: float,
) -> None:
    _batch_norm(low, outs[:3], x, weight, bias, running_mean, running_var, True, momentum, eps)


@lowers("_batch_norm_no_update.default")
def _batch_norm_no_update(
    low: Lowering,
    outs: Sequence[View],
    x: View,
    weight: View | None,
    bias: View | None,
    running_mean: View | None,
    running_var: View | None,
    momentum: float,
    eps: float,
) -> None:
    _batch_norm(low, outs[:3], x, weight, bias, running_mean, running_var, False, momentum, eps)


@lowers("native_batch_norm_backward.default")
def _batch_norm_backward(
    low: Lowering,
    outs: Sequence[View | None],
    grad: View,
    x: View,
    weight: View | None,
    running_mean: View | None,
    running_var: View | None,
    save_mean: View | None,
    save_invstd: View | None,
    train: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> None:
    wanted, code = _wanted(outs, output_mask)
    mean, spread = (save_mean, save_invstd) if train else (running_mean, running_var)
    _need(*wanted, grad, x, weight, mean, spread)
    _need_channels(x)
    if mean is None or spread is None:
        raise Unsupported("no statistics")
    if not wanted:
        return
    dx = outs[0] if code & 1 else None
    if _channels_inside(x) and _channels_inside(grad) and (dx is None or _channels_inside(dx)):
        x, grad = _as_columns(x), _as_columns(grad)
        wanted = [_as_columns(view) if view is dx else view for view in wanted]
    ins = _present(low, grad, x, mean, spread, weight)
    results = _Results(low, *wanted)
    code |= (_HAS_WEIGHT if weight is not None else 0) | (_TRAINING if train else 0)
    low.emit("batch_norm_backward", results.views, ins, [eps], [code])
    results.finish()


@lowers("batch_norm_backward.default")
def _batch_norm_backward_with_reserve(
    low: Lowering,
    outs: Sequence[View | None],
    grad: View,
    x: View,
    weight: View,
    running_mean: View | None,
    running_var: View | None,
    save_mean: View | None,
    save_var: View | None,
    update: bool,
    eps: float,
    output_mask: Sequence[bool],
    reserve: View,
) -> None:
    _batch_norm_backward(
        low, outs, grad, x, weight, running_mean, running_var, save_mean, save_var, update, eps, output_mask
    )
