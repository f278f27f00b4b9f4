"""How `benchmarks.gpu` times work on a device, and the floors with which it compares the results.

Calls are captured in a CUDA graph and replayed, so that Python's overhead is excluded. They take turns
on several sets of inputs, together larger than L2, and the results of one are kept until its set's next turn:
no call finds its inputs in the cache because it ran a moment ago. A loop as users write it has one set. On a
CPU, for a rehearsal, calls are made directly.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

import fastnn

Call = Callable[[], object]
Calls = dict[str, Call]
Op = TypeVar("Op", bound=Callable[..., Any])

REPEATS = 20
LEAST_CALLS = 10  # between two events, if they are short
LONGEST = 0.02  # seconds between two events above which fewer calls suffice
SPENT = 0.4  # seconds for a figure, unless three repeats take more
ROTATED = 3  # times the cache, the inputs and outputs of all sets
MOST_SETS = 64
REHEARSED = 24  # the longest side in a rehearsal


@dataclass(frozen=True)
class Place:
    """The device of the work; in a rehearsal all sizes are small, and torch compiles nothing."""

    device: torch.device
    rehearsal: bool = False

    @property
    def is_cuda(self) -> bool:
        """Whether there are graphs and events."""
        return self.device.type == "cuda"

    def size(self, size: int) -> int:
        """A number of rows, features and the like."""
        return min(size, REHEARSED) if self.rehearsal else size

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal random numbers."""
        return torch.randn([self.size(n) for n in shape], device=self.device).to(dtype)

    def leaf(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The same, requiring gradients."""
        return self.randn(*shape, dtype=dtype).requires_grad_()

    def randint(self, high: int, count: int) -> Tensor:
        """Random numbers from 0 to `high` - 1."""
        return torch.randint(self.size(high), (self.size(count),), device=self.device)

    def compiled(self, op: Op) -> Op:
        """Compiled by torch for one shape; `measured` starts each case with nothing compiled."""
        return op if self.rehearsal else cast(Op, torch.compile(op, dynamic=False))

    @property
    def cache(self) -> int:
        """Bytes of L2."""
        size: int = torch.cuda.get_device_properties(self.device).L2_cache_size if self.is_cuda else 1 << 20
        return size


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        name: what is done.
        make: makes a set of inputs, and one call on them for each contender, ours first.
        moved: bytes that any implementation reads or writes.
        flops: operations that it needs.
        arithmetic: a key of `Ceilings.flops`.
        by_graph: whether Python's overhead is excluded; a loop as users write it includes it.
        sides: M, N and K, of a product.
    """

    name: str
    make: Callable[[], Calls]
    moved: int
    flops: int = 0
    arithmetic: str = "float32"
    by_graph: bool = True
    sides: tuple[int, ...] = ()

    def sets(self, place: Place) -> int:
        """How many sets of inputs take turns."""
        return max(1, min(MOST_SETS, math.ceil(ROTATED * place.cache / self.moved))) if self.by_graph else 1


class Figure(NamedTuple):
    """Seconds of a call, and how they were found: by "graph", or by "calls" and why."""

    seconds: float
    how: str


def _clocked(run: Call, place: Place) -> float:
    """Seconds of a run, which starts with the device idle or busy with the previous one."""
    if not place.is_cuda:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds * 1e-3


_failed: list[torch.cuda.CUDAGraph] = []  # torch's allocator may still refer to them


def _captured(run: Call, place: Place) -> Call:
    """The replay of a graph of a run, captured on the current stream, which must not be the default one."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            run()
    except Exception:
        _failed.append(graph)
        # If a capture fails, torch before 2.13 leaves its generator in the capturing state; a successful one
        # resets it.
        with contextlib.suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.zeros(1, device=place.device)
        raise
    return graph.replay


def timed(calls: Sequence[Call], place: Place, by_graph: bool = True) -> Figure:
    """Median time of a call; `calls` do the same on several sets of inputs."""
    kept: list[object] = [call() for call in calls]  # one-time work is done now

    def turn() -> None:
        for i, call in enumerate(calls):
            kept[i] = call()

    once = max(_clocked(turn, place), 1e-9)
    turns = max(1, min(math.ceil(LEAST_CALLS / len(calls)), int(LONGEST / once)))

    def run() -> None:
        for _ in range(turns):
            turn()

    how = "calls"
    replay: Call = run
    if by_graph and place.is_cuda:
        try:
            how, replay = "graph", _captured(run, place)
        except Exception as error:  # such as an optimizer of torch's that cannot be captured
            how = f"calls: {str(error).partition(chr(10))[0]}"
    replay()
    spent = max(_clocked(replay, place), 1e-9)
    repeats = max(3, min(REPEATS, int(SPENT / spent)))
    times = [_clocked(replay, place) for _ in range(repeats)]
    return Figure(statistics.median(times) / (turns * len(calls)), how)


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Make torch multiply float32 in "tf32" or in full precision, "ieee"."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = precision
    try:
        yield
    finally:
        matmul.fp32_precision = before


@dataclass(frozen=True)
class Ceilings:
    """The best rates measured on the device: bytes and, by arithmetic, operations a second."""

    bandwidth: float
    flops: dict[str, float]

    def floor(self, case: Case) -> tuple[float, str]:
        """The least seconds that a case can take, and what limits them."""
        of_bytes = case.moved / self.bandwidth
        of_flops = case.flops / self.flops[case.arithmetic]
        return max((of_bytes, "bytes"), (of_flops, "FLOPs"))


def ceilings(place: Place) -> Ceilings:
    """Measure them: a copy of 1 GiB within the device, read and written; torch's large products."""
    source = place.randn(1 << 14, 1 << 14)
    target = torch.empty_like(source)
    copied = timed([lambda: target.copy_(source)], place).seconds
    flops: dict[str, float] = {}
    for name, dtype, side in (
        ("float32", torch.float32, 8192),
        ("tf32", torch.float32, 8192),
        ("bfloat16", torch.bfloat16, 8192),
        ("float16", torch.float16, 8192),
        ("float64", torch.float64, 4096),
    ):
        a, b = (place.randn(side, side, dtype=dtype) for _ in range(2))
        c = torch.empty_like(a)

        def product(a: Tensor = a, b: Tensor = b, c: Tensor = c) -> None:
            torch.mm(a, b, out=c)

        with float32_products("tf32" if name == "tf32" else "ieee"):
            flops[name] = 2 * a.shape[0] ** 3 / timed([product], place).seconds
    # Three products in tf32 are as accurate.
    flops["float32"] = max(flops["float32"], flops["tf32"] / 3)
    return Ceilings(2 * source.numel() * source.element_size() / copied, flops)


def measured(case: Case, place: Place, ceiling: Ceilings) -> dict[str, Any]:
    """The figure of each contender, its floor, and why ours did not run natively, if so: data for JSON."""
    torch.compiler.reset()
    made = [case.make() for _ in range(case.sets(place))]
    floor, bound = ceiling.floor(case)
    seconds: dict[str, float | None] = {}
    row: dict[str, Any] = {
        "case": case.name,
        "floor": floor,
        "bound": bound,
        "sets": len(made),
        "sides": case.sides,
        "arithmetic": case.arithmetic,
        "seconds": seconds,
        "by calls": {},
        "not native": [],
    }
    for contender in made[0]:
        calls = [of_set[contender] for of_set in made]
        try:
            if not seconds:
                decisions = fastnn.explain(calls[0]).decisions
                row["not native"] = sorted({d.reason for d in decisions if d.reason is not None})
            figure = timed(calls, place, case.by_graph)
        except Exception as error:  # a failing contender must not cost the others' figures
            seconds[contender] = None
            print(f"{case.name}, {contender}: {error}")
            continue
        seconds[contender] = figure.seconds
        if case.by_graph and figure.how != "graph":
            row["by calls"][contender] = figure.how
    return row


def to_text(row: dict[str, Any]) -> str:
    """A line: the floor, each contender and the fraction of its time that the floor is; * if it was not
    captured."""
    floor = row["floor"]
    figures = [
        f"{name}{'*' if name in row['by calls'] else ''} {taken * 1e6:.1f} = {floor / taken:.0%}"
        for name, taken in row["seconds"].items()
        if taken is not None
    ]
    why = f" not native: {'; '.join(row['not native'])}" if row["not native"] else ""
    return f"{row['case']:<46} floor {floor * 1e6:.1f} ({row['bound']}); {', '.join(figures)}{why}"
