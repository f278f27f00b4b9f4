"""What a captured training step asks of CUDA; tests without a GPU put a stand-in for these functions."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_one_at_a_time = threading.Lock()  # captures in a process


def is_there(t: Tensor) -> bool:
    """Whether work on `t` can be captured."""
    return t.is_cuda


def current_stream(device: torch.device) -> object:
    """The stream that work on a device goes to; equal to itself only."""
    return torch.cuda.current_stream(device)


def is_capturing(device: torch.device) -> bool:
    """Whether somebody captures that stream already."""
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def capture(
    device: torch.device,
    rehearse: Callable[[], object],
    settled: Callable[[], None],
    body: Callable[[], T],
) -> tuple[Callable[[], None], T]:
    """Record the work of `body`, none of which is done, in a CUDA graph.

    Waits for the device. Whatever is raised, the current device and stream are as before.

    Args:
        device: of the tensors that `body` works on.
        rehearse: does the same kind of work to no effect, so that all kernels are loaded and all libraries
            have what they need on another stream than the current one.
        settled: called when the device has nothing left to do, before the capture.
        body: what is captured.

    Returns:
        A function that does the work, on the stream that is current then; and what `body` returned, of which
        the tensors keep their place in memory and are written by each replay.
    """
    with _one_at_a_time, torch.cuda.device(device), _stream_kept(device):
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            rehearse()
        torch.cuda.synchronize(device)
        settled()
        graph = torch.cuda.CUDAGraph()
        # Another stream than that of the rehearsal, as torch advises: what a library keeps for each stream
        # then comes from the graph's own memory. Other threads, such as one that pins the memory of batches,
        # go on as they like meanwhile.
        fresh = torch.cuda.Stream(device)
        with _no_collection(), torch.cuda.graph(graph, stream=fresh, capture_error_mode="thread_local"):
            outputs = body()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay, outputs


def _stream_kept(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Keep the current stream: torch's manager leaves another one where the end of a capture fails."""
    return torch.cuda.stream(torch.cuda.current_stream(device))


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage may hold what CUDA does not let go of during a capture, such as another graph."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
