"""Which memory a view touches, and whether two views touch the same."""

from __future__ import annotations

from typing import NamedTuple

from fastnn.capture.ir import Storage, View, contiguous_strides


class Extent(NamedTuple):
    """The bytes from ``low`` up to ``high`` of a storage; if ``pitch`` is not 0, only those whose offset from
    ``low``, modulo ``pitch``, is below ``width``."""

    storage: Storage
    low: int
    high: int
    pitch: int
    width: int


def canonical(view: View, shape: tuple[int, ...]) -> View:
    """The view broadcast to a shape, without dimensions of size 1, and flat if it is contiguous or one
    element: equal for the same elements in the same order."""
    if view.shape != shape:
        view = view.expand(shape)
    dims = [(n, stride) for n, stride in zip(view.shape, view.strides, strict=True) if n != 1]
    if not dims:
        return View(view.storage, view.offset, (), (), view.dtype)
    if len(dims) > 1:
        if view.is_contiguous:
            dims = [(view.numel, 1)]
        elif not any(stride for _, stride in dims):
            dims = [(view.numel, 0)]
    return View(
        view.storage, view.offset, tuple(n for n, _ in dims), tuple(stride for _, stride in dims), view.dtype
    )


def is_flat(view: View) -> bool:
    """Whether a canonical view is contiguous or one element."""
    return view.strides in ((), (0,), (1,))


def reshaped(view: View, shape: tuple[int, ...]) -> View:
    """A canonical view in a shape without dimensions of size 1 that it can have."""
    if view.shape == shape:
        return view
    return view.with_shape(shape, contiguous_strides(shape) if view.strides == (1,) else (0,) * len(shape))


def extent(view: View) -> Extent:
    """The memory of a view's elements; empty if it has none."""
    size = view.dtype.itemsize
    span, pitch, outermost, count = size, 0, 0, 1
    for n, stride in zip(view.shape, view.strides, strict=True):
        count *= n
        if n > 1:
            step = stride * size
            span += (n - 1) * step
            if step > pitch:
                pitch, outermost = step, (n - 1) * step
    low = view.offset * size
    if count == 0:
        return Extent(view.storage, low, low, 0, 0)
    width = span - outermost
    return Extent(view.storage, low, low + span, pitch if width < pitch else 0, width)


def overlap(a: Extent, b: Extent) -> bool:
    """Whether two views may have an element in common."""
    if a.storage is not b.storage or a.low >= b.high or b.low >= a.high:
        return False
    if a.pitch == 0 or a.pitch != b.pitch:
        return True
    apart = (b.low - a.low) % a.pitch
    return apart < a.width or apart + b.width > a.pitch
