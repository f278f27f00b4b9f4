"""Torch's Bernoulli numbers, drawn several times faster."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from fastnn import _dispatch


def bernoulli(x: Tensor, p: float = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    """The values of ``x.bernoulli_(p)``, which leave the generator in the same state as torch's op.

    ``x`` is contiguous, of float32 or float64, on the CPU.
    """
    if not _draws_alike():
        return x.bernoulli_(p, generator=generator)
    _dispatch.cpu.bernoulli(x, p, torch.default_generator if generator is None else generator)
    return x


@cache
def _draws_alike() -> bool:
    """Whether this torch draws the same numbers as the kernel: builds with a library for them do not."""
    torchs, ours = torch.Generator().manual_seed(20), torch.Generator().manual_seed(20)
    theirs, own = (torch.empty(701, device="cpu") for _ in range(2))
    theirs.bernoulli_(0.3, generator=torchs)
    try:
        _dispatch.cpu.bernoulli(own, 0.3, ours)
    except ValueError:  # another kind of state
        return False
    return torch.equal(theirs, own) and torch.equal(torchs.get_state(), ours.get_state())
