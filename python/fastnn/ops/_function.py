"""What the autograd functions of all native ops share."""

from __future__ import annotations

from typing import Any

import torch


class NativeFunction(torch.autograd.Function):
    """An autograd function that is applied only where no functorch transform is active.

    `fastnn._backend` has made sure of that before, so `apply` skips torch's search for transforms and wrapped
    arguments, which takes about a quarter of the time of a small op.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run the function and record it for backward."""
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]  # it has no stub
