"""The order of a capture's CUDA calls, and the state it leaves if one of them fails."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from fastnn.capture import cuda_graph

DEVICE = torch.device("cuda:1")


class FakeCuda:
    """The part of `torch.cuda` that a capture calls; records the calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.current = "the user's"
        self.at_device = "cuda:0"
        self.fails_at: set[str] = set()
        self.error: Callable[[str], RuntimeError] = RuntimeError
        self.generator_captures = False  # torch's before 2.13 stays so until a capture has succeeded
        self._made = iter(("side", "fresh", "another"))
        for name in ("device", "stream", "current_stream", "synchronize", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda n, device: zeros(n))
        for name, call in (
            ("_cuda_clearCublasWorkspaces", lambda: self.note("clear")),
            ("_cuda_endAllocateToPool", lambda index, pool: self.note(f"leave the {pool} of {index}")),
        ):
            monkeypatch.setattr(torch._C, name, call, raising=False)
        for name, empty in (("_streams", {}), ("_failed", {}), ("_failed_graphs", [])):
            monkeypatch.setattr(cuda_graph, name, empty)
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: FakeStream(self, next(self._made)))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(self))

    def note(self, call: str) -> None:
        self.calls.append(f"{call} on {self.current} of {self.at_device}")
        if call in self.fails_at and self.current != "another":
            raise self.error(f"{call} fails\nand more of it")

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.at_device = self.at_device, str(device)
        try:
            yield
        finally:
            self.at_device = before

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, getattr(stream, "name", stream)
        try:
            yield
        finally:
            self.current = before

    def current_stream(self, device: torch.device) -> str:
        return self.current

    def synchronize(self, device: torch.device) -> None:
        self.note("synchronize")

    @contextlib.contextmanager
    def graph(
        self, graph: Any, stream: Any, capture_error_mode: str, pool: str | None = None
    ) -> Iterator[None]:
        assert pool == (None if stream.name == "another" else "pool")
        assert capture_error_mode == "thread_local"
        assert not gc.isenabled()
        self.current = stream.name
        self.generator_captures = True
        self.note("begin")
        try:
            yield
        finally:
            self.note("end")  # if this fails torch restores neither stream nor generator
            self.generator_captures = False
        self.current = "the user's"


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self._cuda = cuda
        self.name = name

    def wait_stream(self, other: str) -> None:
        self._cuda.note(f"{self.name} waits for {other}")


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda

    def replay(self) -> None:
        self._cuda.note("replay")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def capture(cuda: FakeCuda) -> tuple[Callable[[], None], str]:
    def body() -> str:
        cuda.note("body")
        return "outputs"

    return cuda_graph.capture(DEVICE, lambda: cuda.note("rehearse"), lambda: cuda.note("settled"), body)


def test_streams_and_graphs_come_in_this_order(cuda: FakeCuda) -> None:
    replay, outputs = capture(cuda)
    replay()
    assert outputs == "outputs"
    assert cuda.calls == [
        "side waits for the user's on the user's of cuda:1",
        "rehearse on side of cuda:1",
        "synchronize on the user's of cuda:1",
        "settled on the user's of cuda:1",
        "clear on the user's of cuda:1",
        "begin on fresh of cuda:1",
        "body on fresh of cuda:1",
        "end on fresh of cuda:1",
        "clear on the user's of cuda:1",
        "replay on the user's of cuda:1",
    ]
    assert gc.isenabled()
    capture(cuda)  # on the same streams
    assert cuda_graph.why_failed(DEVICE) is None


@pytest.mark.parametrize("fails_at", ["rehearse", "synchronize", "settled", "begin", "body", "end"])
def test_a_failed_capture_restores_what_it_changed(cuda: FakeCuda, fails_at: str) -> None:
    cuda.fails_at = {fails_at}
    with pytest.raises(RuntimeError, match=fails_at):
        capture(cuda)
    assert (cuda.current, cuda.at_device) == ("the user's", "cuda:0")
    assert gc.isenabled()
    with ThreadPoolExecutor(1) as others:
        assert others.submit(lambda: cuda_graph.capturing.acquire(False) and _done()).result()
    broken = fails_at in ("begin", "end")  # rather than in the caller's functions
    assert cuda_graph.why_failed(DEVICE) == (f"{fails_at} fails" if broken else None)
    assert len(cuda_graph._failed_graphs) == broken
    left = [call for call in cuda.calls if call.startswith("leave the pool of 1 ")]
    assert len(left) == broken
    assert not cuda.generator_captures


def _done() -> bool:
    cuda_graph.capturing.release()
    return True


def test_the_first_failure_is_reported(cuda: FakeCuda) -> None:
    cuda.fails_at = {"body", "end", "leave the pool of 1"}
    with pytest.raises(RuntimeError, match="body fails"):
        capture(cuda)
    assert cuda_graph.why_failed(DEVICE) == "body fails"
    assert cuda_graph.why_failed(torch.device("cuda:0")) is None


@pytest.mark.parametrize("fails_at", ["begin", "body", "end"])
def test_lack_of_memory_passes(cuda: FakeCuda, fails_at: str) -> None:
    cuda.fails_at, cuda.error = {fails_at, "end"}, torch.OutOfMemoryError
    with pytest.raises(torch.OutOfMemoryError, match=fails_at):
        capture(cuda)
    assert cuda_graph.why_failed(DEVICE) is None
    assert (cuda.current, cuda.at_device, cuda.generator_captures) == ("the user's", "cuda:0", False)
    cuda.fails_at = set()
    assert capture(cuda)[1] == "outputs"


def test_whether_somebody_captures_is_asked_of_the_device(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_at = []

    def ask() -> bool:
        asked_at.append(cuda.at_device)
        return len(asked_at) > 1

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", ask)
    assert cuda_graph.why_not_now(DEVICE) is None
    assert cuda_graph.why_not_now(DEVICE) == "a CUDA graph is being captured already"
    assert asked_at == ["cuda:1", "cuda:1"]


def test_a_capture_that_nobody_knows_of_is_a_reason(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> bool:
        raise RuntimeError("CUDA error: operation would make the legacy stream depend on another\nand more")

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", fail)
    unknown = "CUDA does not say whether a graph is being captured: "
    said = "CUDA error: operation would make the legacy stream depend on another"
    assert cuda_graph.why_not_now(DEVICE) == unknown + said
    assert cuda.at_device == "cuda:0"
    monkeypatch.delattr(torch.cuda, "is_current_stream_capturing")
    assert str(cuda_graph.why_not_now(DEVICE)).startswith(unknown)


@pytest.mark.cuda
def test_a_capture_that_breaks_leaves_the_device_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(cuda_graph, "_failed", {})
    x = torch.ones(3, device=device)
    with pytest.raises(RuntimeError):
        cuda_graph.capture(device, lambda: None, lambda: None, lambda: x.sum().item())
    assert cuda_graph.why_failed(device) is not None
    assert cuda_graph.why_not_now(device) is None
    numbers = torch.rand(1000, device=device)
    assert 0.4 < float(numbers.mean()) < 0.6
    graph, counted = torch.cuda.CUDAGraph(), torch.zeros(1, device=device)
    with torch.cuda.graph(graph):
        counted += 1
    graph.replay()
    assert float(counted) == 1
