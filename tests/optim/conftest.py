"""The optimizers' tests run with every CPU variant and with the CUDA kernels, emulated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cuda_emulation import EMULATED
from every_kernel import kernels_of
from variants import runnable_isas


@pytest.fixture(params=[*runnable_isas(), *EMULATED])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each CPU variant, and the CUDA kernels in orders of threads that differ much."""
    with kernels_of(request):
        yield request.param
