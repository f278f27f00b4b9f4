"""The calls of CUDA that captures need; tests without a GPU replace these functions."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from fastnn._torch_internals import clear_workspaces, end_allocation

T = TypeVar("T")

# Held by captures, of which a process has one at a time, and around anything that would make another
# thread's capture fail: waiting for a whole device.
capturing = threading.RLock()

_streams: dict[torch.device, tuple[torch.cuda.Stream, torch.cuda.Stream]] = {}  # for warm-ups, for captures
_failed: dict[torch.device, str] = {}
_done: dict[torch.device, torch.cuda.Event] = {}
_failed_graphs: list[torch.cuda.CUDAGraph] = []  # torch's allocator may still refer to them


def is_there(device: torch.device) -> bool:
    """Whether work on a device can be captured at all."""
    return device.type == "cuda"


def current_stream(device: torch.device) -> object:
    """The stream that work on a device goes to; equal to itself only."""
    return torch.cuda.current_stream(device)


def why_not_now(device: torch.device) -> str | None:
    """Why nothing may be captured, replayed or waited for on the current stream: it is being captured."""
    try:
        with torch.cuda.device(device):
            is_captured = torch.cuda.is_current_stream_capturing()
    # The error of the legacy stream while another thread captures, or of a torch that cannot be asked.
    except (RuntimeError, AttributeError) as error:
        why = str(error).partition("\n")[0]
        return f"CUDA does not say whether a graph is being captured: {why}"
    return "a CUDA graph is being captured already" if is_captured else None


def arithmetic() -> tuple[object, ...]:
    """The settings that select different kernels for the same tensors."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return (
        (cudnn.enabled, cudnn.deterministic, cudnn.benchmark),
        torch.are_deterministic_algorithms_enabled(),
        matmul.fp32_precision,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
    )


@contextlib.contextmanager
def in_turn(device: torch.device) -> Iterator[None]:
    """Make work on a device start after that of the last such block, on any stream."""
    stream = torch.cuda.current_stream(device)
    done = _done.get(device)
    if done is not None:
        stream.wait_event(done)
    try:
        yield
    finally:
        _done[device] = stream.record_event()


def why_failed(device: torch.device) -> str | None:
    """Why a capture on that device failed, after which none may be tried again there; None if none has
    failed."""
    return _failed.get(device)


def lacks_memory(error: BaseException) -> bool:
    """Whether it is a lack of memory, which may be temporary."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "STATUS_ALLOC_FAILED")
    )


def capture(
    device: torch.device,
    rehearse: Callable[[], object],
    settled: Callable[[], None],
    body: Callable[[], T],
) -> tuple[Callable[[], None], T]:
    """Record the work of `body`, none of which is done, in a CUDA graph.

    Waits for the device. If something is raised, the current device and stream are as before. What `body`
    raises is raised; if CUDA or torch cannot end the capture, for that or any other reason, `why_failed`
    returns it from then on, unless it was for lack of memory.

    Args:
        device: of the tensors that `body` works on.
        rehearse: does the same kind of work to no effect, so that all kernels are loaded and all libraries
            are set up, on a side stream.
        settled: called when the device has nothing left to do, before the capture.
        body: what is captured.

    Returns:
        A function that does the work, on the stream current when it is called; and what `body` returned,
        whose tensors keep their addresses and are written by each replay.
    """
    with capturing, torch.cuda.device(device), _stream_kept(device):
        if device not in _streams:
            _streams[device] = torch.cuda.Stream(device), torch.cuda.Stream(device)
        side, fresh = _streams[device]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            rehearse()
        torch.cuda.synchronize(device)
        settled()
        graph = torch.cuda.CUDAGraph()
        with _own_workspaces():
            outputs = _record(device, graph, fresh, body)

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay, outputs


def _record(
    device: torch.device, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, body: Callable[[], T]
) -> T:
    pool = torch.cuda.graph_pool_handle()
    raised: BaseException | None = None
    try:
        # Other threads may do work that waits for no device, such as pinning the memory of batches.
        with (
            no_collection(),
            torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            try:
                return body()
            except BaseException as error:
                raised = error
                raise
    except BaseException as error:
        if error is raised:  # and the capture has been ended
            raise
        first = raised or error
        if not lacks_memory(first):
            _failed[device] = str(first).partition("\n")[0]
        _failed_graphs.append(graph)
        _end_allocation(device, pool)
        _free_generator(device)
        raise first from None  # torch's error at the end of the capture is less specific


def _end_allocation(device: torch.device, pool: Any) -> None:
    """Stop allocations from the pool, which torch omits when a capture fails."""
    with contextlib.suppress(Exception):  # they have been stopped
        end_allocation(device, pool)


def _free_generator(device: torch.device) -> None:
    """Make random operations work again.

    If ending a capture fails, torch before 2.13 leaves the device's generator in its capturing state, and
    each of them raises "Offset increment outside graph capture". A capture that succeeds resets the
    generator.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):  # the current one may still be that of the capture
            nothing = torch.zeros(1, device=device)
        with no_collection(), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            nothing.zero_()
    except Exception:
        _failed_graphs.append(graph)


@contextlib.contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let cuBLAS take its memory for a stream from the graph's pool, and not keep it for the next capture."""
    clear_workspaces()
    try:
        yield
    finally:
        clear_workspaces()


def _stream_kept(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Keep the current stream: torch's manager leaves a different one if ending a capture fails."""
    return torch.cuda.stream(torch.cuda.current_stream(device))


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector from running in this block.

    Garbage may hold what CUDA cannot free during a capture, such as another graph; and when thousands of
    long-lived objects are made, the collector would scan all objects for nothing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
