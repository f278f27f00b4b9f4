"""Names for native calls in the output of torch's profiler; without a profiler they cost the check of a
flag."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import record_function

from fastnn._torch_internals import is_profiling


def labelled(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`function`; while a profiler runs, with ``fastnn::name`` around its call."""
    if not is_profiling():
        return function

    def call(*args: Any) -> Any:
        with record_function(f"fastnn::{name}"):
            return function(*args)

    return call


class LabelledModule:
    """A compiled module whose functions are labelled; equal to the module itself."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return labelled(found, name) if callable(found) else found

    def __eq__(self, other: object) -> bool:
        return other is self._module

    __hash__ = None  # type: ignore[assignment]
