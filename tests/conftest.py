"""Fixtures that every test file shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastnn import _backend


def runnable_isas() -> list[str]:
    """Names of the CPU variants that this build has and this machine can run."""
    if _backend.cpu is None:
        return []
    active, names = _backend.cpu.isa, []
    for name in ("sse2", "neon", "generic", "avx2", "avx512", "avx512_bf16"):
        try:
            _backend.cpu.select_isa(name)
        except ValueError:
            continue
        names.append(name)
    _backend.cpu.select_isa(active)
    return names


@pytest.fixture(params=runnable_isas() or ["torch"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once with each CPU variant."""
    if _backend.cpu is None:
        yield "torch"
        return
    active = _backend.cpu.isa
    _backend.cpu.select_isa(request.param)
    yield request.param
    _backend.cpu.select_isa(active)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Run the test once on the CPU and, where there is a GPU, once there."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
