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
    """Record what a function does with tensors, and replay that natively, as a CUDA graph is on a GPU.

    Python runs at the recording only: prints, counters, hooks and whatever else the function does beside its
    tensors do not happen in a replay. Which models, optimizers, tensors and numbers its code finds by name,
    in variables, attributes and small lists and dicts, is watched: bound to something else, they lead to a
    new recording. What the function itself rebinds is not, and warned of (UserWarning), as in
    ``self.n += 1``: do that outside.

    ::

        @fastnn.capture
        def update(obs, act, next_obs, reward, done):
            ...  # models, losses, backward calls, optimizer steps, soft updates
            return loss.detach()

    Of each signature (shapes, strides and dtypes of tensors, all other arguments) the first call runs as
    written, the second is recorded, the third is compared with torch, from the same state and random numbers,
    and from then on a call is one native call. Ops without a native instruction are run by torch within it;
    random numbers come from torch's generator, in torch's order.

    Parameters, buffers and optimizers' states are the user's own tensors and valid after each call; options
    of optimizers are read when the step is taken. Results are new tensors in each call. ``.grad`` of a
    parameter that the function updates is None after a replay where the function drops it itself.

    What cannot be recorded, such as ``.item()`` and control flow on values, runs as written, and is warned of
    once (:class:`fastnn.EagerStepWarning`). ``fastnn.explain(update, *args)`` reports where each call ran. On
    a CUDA device a recording is a CUDA graph of torch's kernels (never run on hardware so far).

    Args:
        fn: a function, method, lambda or module. Without it a decorator is returned.
        native: whether a call that cannot be recorded raises RuntimeError; the one that finds it out has run.
        check: whether recordings are compared with torch before they are used.
        keep_grad: keep all gradients in ``.grad``, for code outside that reads them or steps with them.

    Returns:
        :class:`Captured`, which is called as `fn` is; ``programs`` are its recordings.

    Raises:
        TypeError: `fn` cannot be called.
        RuntimeError: see `native`.
        IndexError, RuntimeError: an index is out of range, as torch's op has it; what came before it has been
            done, as in torch, but gradients that are new tensors are not yet in ``.grad``.
        Exception: whatever `fn` raises.
    """
    if fn is None:
        return functools.partial(capture, native=native, check=check, keep_grad=keep_grad)
    if isinstance(fn, (staticmethod, classmethod)):
        return type(fn)(capture(fn.__func__, native=native, check=check, keep_grad=keep_grad))
    if not callable(fn):
        raise TypeError(f"capture: fn must be callable, got {type(fn).__name__}")
    return Captured(fn, native=native, check=check, keep_grad=keep_grad)
