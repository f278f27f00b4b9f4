"""The order in which a capture asks CUDA for things, and what it leaves behind where one of them fails."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fastnn import _cuda_graph

DEVICE = torch.device("cuda:1")


class FakeCuda:
    """What a capture calls of `torch.cuda`, noting it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.current = "the user's"
        self.at_device = "cuda:0"
        self.fails_at: str | None = None
        self._made = iter(("side", "fresh"))
        for name in ("device", "stream", "current_stream", "synchronize", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: FakeStream(self, next(self._made)))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(self))

    def note(self, call: str) -> None:
        self.calls.append(f"{call} on {self.current} of {self.at_device}")
        if self.fails_at == call:
            raise RuntimeError(call)

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
    def graph(self, graph: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        assert not gc.isenabled()
        self.current = stream.name
        self.note("begin")
        try:
            yield
        finally:
            self.note("end")  # where this fails torch does not put the stream back
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

    return _cuda_graph.capture(DEVICE, lambda: cuda.note("rehearse"), lambda: cuda.note("settled"), body)


def test_the_order(cuda: FakeCuda) -> None:
    replay, outputs = capture(cuda)
    replay()
    assert outputs == "outputs"
    assert cuda.calls == [
        "side waits for the user's on the user's of cuda:1",
        "rehearse on side of cuda:1",
        "synchronize on the user's of cuda:1",
        "settled on the user's of cuda:1",
        "begin on fresh of cuda:1",
        "body on fresh of cuda:1",
        "end on fresh of cuda:1",
        "replay on the user's of cuda:1",
    ]
    assert gc.isenabled()


@pytest.mark.parametrize("fails_at", ["rehearse", "synchronize", "settled", "begin", "body", "end"])
def test_what_a_failure_leaves(cuda: FakeCuda, fails_at: str) -> None:
    cuda.fails_at = fails_at
    with pytest.raises(RuntimeError, match=fails_at):
        capture(cuda)
    assert (cuda.current, cuda.at_device) == ("the user's", "cuda:0")
    assert gc.isenabled()
    assert not _cuda_graph._one_at_a_time.locked()
