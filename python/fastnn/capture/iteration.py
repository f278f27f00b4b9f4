"""The order in which to iterate over the elements of several views, with as few dimensions as possible."""

from __future__ import annotations

from functools import cmp_to_key

from fastnn.capture.ir import View, contiguous_strides
from fastnn.capture.overlap import reshaped

# A row that is at least this long gets blocks of its own, in which operands need no copy.
_LONG_ROW = 128


class Iteration:
    """Views of one shape, with its dimensions ordered by stride and collapsed where all views
    allow it."""

    def __init__(self, shape: tuple[int, ...], views: list[View]) -> None:
        views = [reshaped(view, shape) for view in views]
        if len(shape) > 1:
            shape, views = _collapsed(shape, views)
        self._linear = contiguous_strides(shape)
        self.views = views
        self.by_rows = (
            len(shape) > 1
            and shape[-1] >= _LONG_ROW
            and not all(view.strides == self._linear or self._is_uniform(view) for view in views)
        )

    def is_uniform(self, number: int) -> bool:
        """Whether a view is a single element for all positions."""
        return self._is_uniform(self.views[number])

    def is_direct(self, number: int) -> bool:
        """Whether a view's elements are contiguous within every block."""
        view = self.views[number]
        return view.strides == self._linear or (self.by_rows and view.strides[-1] == 1)

    @staticmethod
    def _is_uniform(view: View) -> bool:
        return bool(view.shape) and not any(view.strides)


def _collapsed(shape: tuple[int, ...], views: list[View]) -> tuple[tuple[int, ...], list[View]]:
    def compare(a: int, b: int) -> int:
        for view in views:
            x, y = view.strides[a], view.strides[b]
            if x and y and x != y:
                return -1 if x > y else 1
        return a - b

    order = sorted(range(len(shape)), key=cmp_to_key(compare))
    sizes = [shape[order[0]]]
    strides = [[view.strides[order[0]]] for view in views]
    for d in order[1:]:
        n = shape[d]
        if all(own[-1] == view.strides[d] * n for own, view in zip(strides, views, strict=True)):
            sizes[-1] *= n
            for own, view in zip(strides, views, strict=True):
                own[-1] = view.strides[d]
        else:
            sizes.append(n)
            for own, view in zip(strides, views, strict=True):
                own.append(view.strides[d])
    dims = tuple(sizes)
    return dims, [view.with_shape(dims, tuple(own)) for view, own in zip(views, strides, strict=True)]
