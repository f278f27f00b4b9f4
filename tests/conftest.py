"""Fixtures that every test file shares."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from importlib.util import find_spec

# Set before fastnn is imported, which reads it: most tests are of kernels on small tensors.
os.environ.setdefault("FASTNN_ALWAYS_NATIVE", "1")
# The tests of a GPU run before its self-test, and are more thorough.
os.environ.setdefault("FASTNN_CUDA_UNPROVEN", "1")
# Set before torch is imported: with one test process per core no cores are spare. Tests of threads request
# theirs, which do not spin while they wait.
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

HAS_GPU = torch.cuda.is_available()
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
    """Information shown before the first test."""
    if is_built():
        return []
    return ["cuda emulator: the first test of it compiles it, for a minute or two in which nothing is shown"]


@pytest.hookimpl(trylast=True)  # after -k and -m: the pairs of values are those of the selected tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not HAS_GPU:
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
    """The tests themselves, a million objects, stay alive: exclude them from garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def all_threads() -> None:
    """Use several threads even if other processes keep the processors busy."""
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
    """The CUDA kernels on the CPU; compiled for the first test that uses them."""
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
    """Run CUDA kernels on a GPU, if there is one, and emulated in very different thread orders on tensors of
    the CPU."""
    return place(request)


@pytest.fixture(params=["cpu", *CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Run the test on the CPU, and like `cuda_device`."""
    return place(request)


@pytest.fixture(params=EVERY_KERNEL)
def every_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Run the test with each CPU variant, and like `cuda_device`."""
    with kernels_of(request) as device:
        yield device


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.cuda), "recorded"])
def graphs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """Capture training steps in CUDA graphs, if there is a GPU, and in their substitute."""
    return set_up(request, monkeypatch)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """As `torch.manual_seed(0)`, which takes longer than many a test: it keeps the stack for devices that are
    not there."""
    torch.default_generator.manual_seed(0)
    if HAS_GPU:
        torch.cuda.manual_seed_all(0)


@pytest.fixture(autouse=True)
def _own_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast check of what runs natively pauses for a thousand calls after a tensor that it cannot read:
    confine that to one test."""
    if _dispatch.cpu is not None:
        monkeypatch.setattr(_dispatch, "_is_plain_call", _dispatch._plain_call())
