"""The same test with the kernels of every CPU variant, of CUDA, and of CUDA emulated on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from cuda_emulation import EMULATED, ORDERS, Emulation, emulation
from fastnn import _dispatch
from variants import runnable_isas, selected

# Parameters of fixtures.
CUDA = (pytest.param("cuda", marks=pytest.mark.cuda), *EMULATED)
EVERY_KERNEL = (*runnable_isas(), *CUDA)


def place(request: pytest.FixtureRequest) -> torch.device:
    """Where tensors of a test with this parameter lie: "cpu", "cuda" or one of EMULATED, which it sets up."""
    kind, _, order = request.param.partition("-")
    if kind != "emulated":
        return torch.device(kind)
    found: Emulation = request.getfixturevalue("emulated_cuda")
    found.checks.set_order(order, dict(ORDERS)[order])
    return torch.device("cpu")


@contextlib.contextmanager
def kernels_of(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Use the kernels that a parameter of EVERY_KERNEL names; gives where their tensors lie."""
    if request.param in ("cuda", *EMULATED):
        yield place(request)
    else:
        with selected(request.param):
            yield torch.device("cpu")


def emulating() -> bool:
    """Whether the kernels of the CPU are the emulated ones now, which are slow."""
    return _dispatch.native(torch.empty(0)) is not _dispatch.cpu


def assert_reproducible(run: Callable[[], list[Tensor]], device: torch.device) -> None:
    """`run` gives the same bits each time.

    On the CPU that is for every number of threads, emulated in other orders of threads than the one set.
    """
    results = [run()]
    if emulating():
        for order in ORDERS:
            if order[0] in ("forward", "warps"):
                emulation().checks.set_order(*order)
                results.append(run())
    elif device.type == "cuda":
        results.append(run())
    else:
        threads = torch.get_num_threads()
        try:
            for count in (1, 2, 3, 5):
                torch.set_num_threads(count)
                results.append(run())
        finally:
            torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
