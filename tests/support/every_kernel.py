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
    """The device of tensors for a test with this parameter: "cpu", "cuda" or one of EMULATED, which it sets
    up."""
    kind, _, order = request.param.partition("-")
    if kind != "emulated":
        return torch.device(kind)
    found: Emulation = request.getfixturevalue("emulated_cuda")
    found.checks.set_order(order, dict(ORDERS)[order])
    return torch.device("cpu")


@contextlib.contextmanager
def kernels_of(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Use the kernels named by a parameter of EVERY_KERNEL; yields the device of their tensors."""
    if request.param in ("cuda", *EMULATED):
        yield place(request)
    else:
        with selected(request.param):
            yield torch.device("cpu")


def emulating() -> bool:
    """Whether kernels on the CPU are now the emulated ones, which are slow."""
    return _dispatch.native(torch.empty(0)) is not _dispatch.cpu


def assert_reproducible(run: Callable[[], list[Tensor]], device: torch.device) -> None:
    """`run` gives the same bits each time.

    On the CPU for every number of threads, emulated also in other thread orders than the one set.
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
