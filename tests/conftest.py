"""Fixtures that every test file shares."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from importlib.util import find_spec

# Before fastnn is imported, which reads it: most tests are of kernels, on tensors that are small.
os.environ.setdefault("FASTNN_ALWAYS_NATIVE", "1")
# The tests of a GPU come before its self-test, and find out more.
os.environ.setdefault("FASTNN_CUDA_UNPROVEN", "1")
# Before torch is: a process of tests for each core has none to spare. Tests of threads ask for theirs, which
# do not spin while they wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

from building import CannotBuildError
from cuda_emulation import ORDERS, Emulation, emulation, is_built
from every_kernel import CUDA, EVERY_KERNEL, kernels_of, place
from fastnn import _dispatch
from fresh import Fresh
from gpu_warnings import allow
from step_graphs import Graphs, set_up
from thinning import thinned
from variants import runnable_isas, selected

# A machine with a GPU may have pytest and little else.
HOSTILE = ("bindings", "calls", "capture", "classes")
collect_ignore = [] if find_spec("hypothesis") else [f"test_hostile_{name}.py" for name in HOSTILE]


@pytest.fixture(params=runnable_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once with each CPU variant."""
    with selected(request.param):
        yield request.param


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all", action="store_true", help="all combinations of parameters, and the tests marked long"
    )
    parser.addoption("--rest", action="store_true", help="what is left out without --all, and nothing else")


def pytest_report_header() -> list[str]:
    """What is worth a word before the first test."""
    if is_built():
        return []
    return ["cuda emulator: the first test of it compiles it, for a minute or two in which nothing is shown"]


@pytest.hookimpl(trylast=True)  # after -k and -m: what they choose has its own pairs of values
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    allow(items)
    rest = config.getoption("--rest")
    if rest or not config.getoption("--all"):
        few = set(thinned([item for item in items if not item.get_closest_marker("long")]))
        config.hook.pytest_deselected(items=[item for item in items if (item in few) is rest])
        items[:] = [item for item in items if (item in few) is not rest]


def pytest_collection_finish() -> None:
    """The tests themselves, a million objects, are there to stay: not to be looked through for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def all_threads() -> None:
    """Several threads are several also where other processes keep the processors busy."""
    if _dispatch.cpu is not None:
        _dispatch.cpu.testing.notice_oversubscription(False)


@pytest.fixture(scope="session")
def run_fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fresh]:
    """`run_fresh(code, path, **environment)` in a process where torch is imported and fastnn is not."""
    if not hasattr(os, "fork"):
        pytest.skip("makes its processes with fork")
    fresh = Fresh(tmp_path_factory.mktemp("fresh"))
    yield fresh
    fresh.close()


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
    monkeypatch.setattr(_dispatch, "native", lambda t: emulated.cuda)
    return emulated


@pytest.fixture(params=CUDA)
def cuda_device(request: pytest.FixtureRequest) -> torch.device:
    """Run CUDA kernels on a GPU, where there is one, and emulated: in orders of threads that differ much, on
    tensors of the CPU."""
    return place(request)


@pytest.fixture(params=["cpu", *CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Run the test on the CPU, and as `cuda_device` does."""
    return place(request)


@pytest.fixture(params=EVERY_KERNEL)
def every_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Run the test with each CPU variant, and as `cuda_device` does."""
    with kernels_of(request) as device:
        yield device


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.cuda), "recorded"])
def graphs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """Capture training steps in CUDA graphs, where there is a GPU, and in what replaces them."""
    return set_up(request, monkeypatch)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick answer to what runs natively pauses after a tensor that it cannot read, for a thousand calls:
    in one test, not in those after it."""
    if _dispatch.cpu is not None:
        monkeypatch.setattr(_dispatch, "_is_plain_call", _dispatch._plain_call())
