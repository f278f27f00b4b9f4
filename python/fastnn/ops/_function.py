"""What the autograd functions of all native ops share."""

from __future__ import annotations

from typing import Any

import torch

# Whether the backward that runs reaches a node; a torch without it computes every gradient.
_will_run = getattr(torch._C, "_will_engine_execute_node", None)


class NativeFunction(torch.autograd.Function):
    """An autograd function that is applied only where no functorch transform is active.

    `fastnn._backend` has made sure of that before, so `apply` skips torch's search for transforms and wrapped
    arguments, which takes about a quarter of the time of a small op.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run the function and record it for backward."""
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]  # it has no stub


def needed_gradients(ctx: Any) -> tuple[bool, ...]:
    """``ctx.needs_input_grad``, without gradients that this backward throws away.

    ``backward(inputs=...)`` and ``autograd.grad`` name the tensors that count, which `needs_input_grad` does
    not know: a critic that an actor is trained through would compute the gradients of its own weights for
    nothing. A function whose first argument requires no gradient runs for its parameters' sake: nothing is
    asked then. Else the first and the last are asked about, and each only where one of them is not needed,
    for asking takes a hundredth of the training step of a tiny network.

    Only in the backward of a native kernel: what torch.compile traces cannot ask.
    """
    needs: tuple[bool, ...] = ctx.needs_input_grad
    if not needs[0] or _will_run is None or True not in needs[1:]:
        return needs
    edges = ctx.next_functions  # of the tensors; without a node where one requires no grad
    first, last = edges[0][0], edges[-1][0]
    try:
        if last is not None and _will_run(first) and _will_run(last):
            return needs
    except Exception:  # as in `_runs`
        pass
    nodes = iter([node for node, _ in edges if node is not None])
    return tuple([need and _runs(next(nodes, None)) for need in needs])


def _runs(node: Any) -> bool:
    try:
        return _will_run(node)  # type: ignore[misc, no-any-return]
    except Exception:  # a leaf that autograd.grad returns, or a torch that answers otherwise
        return True
