"""CUDA graphs of what a test runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def on_a_side_stream(run: Callable[[], list[Tensor]]) -> list[Tensor]:
    """The results of `run` from another stream, several times, as torch requires before a capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            results = run()
    torch.cuda.current_stream().wait_stream(side)
    return results


def replayed(run: Callable[[], list[Tensor]], times: int = 1) -> list[Tensor]:
    """The results of `run`, captured in a CUDA graph (which only records its work) and replayed."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    for _ in range(times):
        graph.replay()
    torch.cuda.synchronize()
    return results


def assert_capturable(run: Callable[[], list[Tensor]]) -> None:
    """`run` gives the same bits directly, on another stream, and captured and replayed."""
    want = run()
    for got in (on_a_side_stream(run), replayed(run)):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
