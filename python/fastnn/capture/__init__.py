"""Record a training step once, and replay it natively."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastnn.capture.captured import Captured


def capture(
    fn: Callable[..., Any] | None = None,
    *,
    native: bool = False,
    check: bool = True,
    keep_grad: bool = False,
) -> Any:
    """Record what `fn` does with tensors, and replay it natively."""
    if fn is None:
        return lambda function: capture(function, native=native, check=check, keep_grad=keep_grad)
    return Captured(fn, native=native, check=check, keep_grad=keep_grad)
