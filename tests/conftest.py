"""Fixtures that every test file shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cuda_emulation import ORDERS, CannotBuildError, Emulation, emulation
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


@pytest.fixture(scope="session")
def emulated() -> Emulation:
    """The CUDA kernels on the CPU; compiled with the first test that asks."""
    try:
        return emulation()
    except CannotBuildError as error:
        pytest.skip(str(error))


@pytest.fixture
def emulated_cuda(emulated: Emulation, monkeypatch: pytest.MonkeyPatch) -> Emulation:
    """Ops that have CUDA kernels run those, emulated, on tensors of the CPU."""
    emulated.checks.set_order(*ORDERS[0])
    monkeypatch.setattr(_backend, "native", lambda t: emulated.cuda)
    return emulated


_EMULATED = ("emulated-reverse", "emulated-threads")  # the two orders that found every barrier left out
_CUDA = [pytest.param("cuda", marks=pytest.mark.cuda), *_EMULATED]


def _place(request: pytest.FixtureRequest) -> torch.device:
    """Where tensors of a test with this parameter lie."""
    kind, _, order = request.param.partition("-")
    if kind != "emulated":
        return torch.device(kind)
    found: Emulation = request.getfixturevalue("emulated_cuda")
    found.checks.set_order(order, dict(ORDERS)[order])
    return torch.device("cpu")


@pytest.fixture(params=_CUDA)
def cuda_device(request: pytest.FixtureRequest) -> torch.device:
    """Run CUDA kernels on a GPU, where there is one, and emulated: in orders of threads that differ much, on
    tensors of the CPU."""
    return _place(request)


@pytest.fixture(params=["cpu", *_CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Run the test on the CPU, and as `cuda_device` does."""
    return _place(request)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
