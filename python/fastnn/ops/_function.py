"""What the autograd functions of all native ops share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastnn._torch_internals import will_run as _will_run

_PAUSE = 63  # so many calls make no queries after an exception
_calls_to_pass = 0


class NativeFunction(torch.autograd.Function):
    """An autograd function that is applied only while no functorch transform is active.

    `fastnn._dispatch` has made sure of that before, so `apply` skips torch's search for transforms and
    wrapped arguments, which takes about a quarter of the time of a small op.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # The method that torch's own `apply` finally calls, bound once.
        cls.apply = super(torch.autograd.Function, cls).apply  # type: ignore[method-assign, misc]


def refused(op: str, refusal: Exception, twin: Callable[[], Tensor]) -> Tensor:
    """Run torch's op for a call that the compiled module refused: its own error, followed by the refusal.

    So an error has torch's type and words, and names what was expected. Errors of other kinds are re-raised.

    Args:
        op: its name in errors of the compiled module.
        refusal: the error.
        twin: the call in torch's ops.
    """
    if not str(refusal).startswith(f"{op}: "):
        raise refusal
    try:
        return twin()
    except (RuntimeError, ValueError) as error:
        raise type(error)(f"{error}\n{refusal}") from None


def needed_gradients(ctx: Any) -> tuple[bool, ...]:
    """``ctx.needs_input_grad``, without gradients that this backward throws away.

    ``backward(inputs=...)`` and ``autograd.grad`` name the tensors that matter, which `needs_input_grad`
    ignores: a critic through which an actor is trained would compute the gradients of its own weights for
    nothing. A function whose first argument requires no gradient runs for its parameters' sake: then nothing
    is queried. Otherwise the last and the first are, and each one only if one of these is not needed, because
    the queries take a hundredth of the training step of a tiny network. For a leaf that ``autograd.grad``
    returns torch raises an exception, which takes as long as a small op: then everything is computed, in the
    next calls too.

    Only in the backward of a native kernel: code traced by torch.compile cannot query.
    """
    global _calls_to_pass
    needs: tuple[bool, ...] = ctx.needs_input_grad
    if not needs[0] or _will_run is None or True not in needs[1:]:
        return needs
    if _calls_to_pass:
        _calls_to_pass -= 1
        return needs
    edges = ctx.next_functions  # of the tensors; without a node where one requires no grad
    first, last = edges[0][0], edges[-1][0]
    try:
        wants_first = hasattr(first, "variable") or _will_run(first)  # a leaf in first position is an input
        if wants_first and last is not None and _will_run(last):
            return needs
        nodes = iter([node for node, _ in edges[1:] if node is not None])
        return wants_first, *[need and _will_run(next(nodes)) for need in needs[1:]]
    except Exception:  # or a torch with another interface
        _calls_to_pass = _PAUSE
        return needs
