"""Record a training step once, and replay it natively."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, overload

from fastnn.capture.captured import Captured


@overload
def capture(
    fn: Callable[..., Any], *, native: bool = ..., check: bool = ..., keep_grad: bool = ...
) -> Captured: ...
@overload
def capture(
    fn: None = None, *, native: bool = ..., check: bool = ..., keep_grad: bool = ...
) -> Callable[[Callable[..., Any]], Captured]: ...


def capture(
    fn: Callable[..., Any] | None = None,
    *,
    native: bool = False,
    check: bool = True,
    keep_grad: bool = False,
) -> Captured | Callable[[Callable[..., Any]], Captured]:
    """Record what a function does with tensors, and replay that natively: what a CUDA graph is to a GPU.

    Python runs only while recording: a replay has no prints, counters, hooks or other side effects. The
    models, optimizers, tensors and numbers that the code finds by name, in variables, attributes and small
    lists and dicts, are watched: if one is bound to something else, the function is recorded again. If the
    function itself rebinds a name, as in ``self.n += 1``, a UserWarning says so: do that outside.

    ::

        @fastnn.capture
        def update(obs, act, next_obs, reward, done):
            ...  # models, losses, backward calls, optimizer steps, soft updates
            return loss.detach()

    For each signature (shapes, strides and dtypes of tensors, all other arguments) the first call runs as
    written, the second is recorded, the third is compared with torch from the same state and random numbers,
    and every later one is a single native call. Ops without a native instruction are run by torch within it.
    Random numbers come from torch's generator, in torch's order.

    Parameters, buffers and optimizer state remain the user's own tensors, up to date after each call. Options
    of optimizers are read at each step. Results are new tensors in each call. If the function drops the
    gradients of parameters that it updates, ``.grad`` is None after a replay.

    A function that does something that cannot be recorded, such as ``.item()`` or control flow on values,
    runs as written, with one warning (:class:`fastnn.EagerStepWarning`). ``fastnn.explain(update, *args)``
    reports where a call ran. On a CUDA device a recording is a CUDA graph of torch's kernels (never run on
    hardware so far). ``docs/capture.md`` has the details.

    Args:
        fn: a function, method, lambda or module. Without it a decorator is returned.
        native: raise RuntimeError if a call cannot be recorded; the call that finds this out has run.
        check: whether recordings are compared with torch before they are used.
        keep_grad: keep all gradients in ``.grad``, for code outside that reads them or steps with them.

    Returns:
        :class:`Captured`, which is called like `fn`; ``programs`` are its recordings.

    Raises:
        TypeError: `fn` is not callable.
        RuntimeError: see `native`.
        IndexError, RuntimeError: an index is out of range; the type is that of torch's op. As in torch,
            everything before that op has been done, but new gradients are not in ``.grad`` yet.
        Exception: whatever `fn` raises.
    """
    if fn is None:
        return functools.partial(capture, native=native, check=check, keep_grad=keep_grad)
    if isinstance(fn, (staticmethod, classmethod)):
        return type(fn)(capture(fn.__func__, native=native, check=check, keep_grad=keep_grad))
    if not callable(fn):
        raise TypeError(f"capture: fn must be callable, got {type(fn).__name__}")
    return Captured(fn, native=native, check=check, keep_grad=keep_grad)
