"""The optimizers' tests run with every CPU variant and with the CUDA kernels, emulated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cuda_emulation import EMULATED, place
from variants import runnable_isas, selected


@pytest.fixture(params=[*runnable_isas(), *EMULATED])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once with each CPU variant, and with the CUDA kernels in orders of threads that differ
    much."""
    if request.param in EMULATED:
        place(request)
        yield request.param
    else:
        with selected(request.param):
            yield request.param
