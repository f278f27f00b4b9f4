"""Runs one case: checks the answers, then times the callables in interleaved rounds."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastnn import _dispatch

from .case import OURS, Call, Case, Workload
from .peers.remote import PeerError, Worker
from .peers.roster import Roster

# A sample shorter than this is repeated: it is long compared with the few microseconds by which an interrupt
# disturbs it. 1 ms is four calls of a small policy, whose CPU time is torch's within 2%: in reports of 15
# rounds the ratio was 0.94 to 1.02. With 4 ms it is 0.99 to 1.01.
MIN_SAMPLE_SECONDS = 4e-3

# With several threads, how long they are kept at work before a sample. While another process was measured
# they fell asleep, and in a virtual machine the first regions after 100 ms wait 4 to 8 ms each for a thread;
# fastnn then works on one thread for a while (core/oversubscription.h), others do not. Steady states are
# compared.
SETTLE_SECONDS = 0.02

# A learner sees its 16 batches three times; its mean loss over the last pass must be below the first.
_LESSONS, _LESSON = 3, 16

Clock = Callable[[], float]


class WrongResultError(Exception):
    """A peer's answer differs from ours: there is nothing to time."""


@dataclass(frozen=True)
class Quartiles:
    """First quartile, median and third quartile."""

    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Samples:
    """Seconds of one call, one value for each round, the mean of `repeats` calls in a row.

    `busy` is, for each round, the CPU seconds of the process that did the work over the wall seconds: how
    many threads were at work.
    """

    seconds: tuple[float, ...]
    repeats: int
    busy: tuple[float, ...] = ()

    @property
    def quartiles(self) -> Quartiles:
        return Quartiles.of(self.seconds)


@dataclass(frozen=True)
class Result:
    """The result of one case. `speedups` has, by peer, quartiles of the peer's time over ours in the same
    round.

    `refused` says why nothing was timed; `fallbacks` lists the ops that torch ran instead.
    """

    case: Case
    samples: Mapping[str, Samples]
    speedups: Mapping[str, Quartiles]
    refused: str | None = None
    fallbacks: tuple[str, ...] = ()


def _tensors(answer: Any) -> list[Tensor]:
    return [answer.detach()] if isinstance(answer, Tensor) else [tensor.detach() for tensor in answer]


def check(workload: Workload) -> None:
    """Raise WrongResultError unless every callable gives our answer within the tolerance.

    The tolerance bounds the largest difference, relative to the largest value of the tensor.
    """
    peers = [name for name in workload.calls if name != OURS and name not in workload.learners]
    for _ in range(workload.checked_calls):
        ours = _tensors(workload.calls[OURS]())
        for name in peers:
            theirs = _tensors(workload.calls[name]())
            if len(ours) != len(theirs):
                raise WrongResultError(f"{OURS} gives {len(ours)} tensors, {name} {len(theirs)}")
            for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
                _check_tensor(i, a, name, b, workload.tolerance)
    for name in workload.learners & workload.calls.keys():
        _check_learner(name, workload.calls[name])


def _check_learner(name: str, call: Call) -> None:
    lessons = [statistics.fmean(_tensors(call())[0].item() for _ in range(_LESSON)) for _ in range(_LESSONS)]
    if not lessons[-1] < lessons[0]:
        raise WrongResultError(
            f"{name} does not learn: its loss goes from {lessons[0]:.3g} to {lessons[-1]:.3g}"
        )


def _check_tensor(index: int, a: Tensor, name: str, b: Tensor, tolerance: float) -> None:
    if a.shape != b.shape or a.dtype != b.dtype:
        raise WrongResultError(
            f"tensor {index}: {OURS} gives {a.dtype} of shape {tuple(a.shape)}, "
            f"{name} {b.dtype} of shape {tuple(b.shape)}"
        )
    a, b = a.double(), b.double()
    scale, difference = b.abs().max().item(), (a - b).abs().max().item()
    if not difference <= tolerance * scale:  # also refuses NaN
        raise WrongResultError(
            f"tensor {index}: {OURS} and {name} differ by {difference:.3g} where values reach {scale:.3g} "
            f"(allowed: {tolerance * scale:.3g})"
        )


def _keep_at_work(seconds: float) -> None:
    """Let the threads that torch and fastnn share do something for so long."""
    values = torch.empty(1 << 20)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        values.zero_()


def _sample(call: Call, repeats: int, clock: Clock, settle: float) -> tuple[float, float]:
    """Wall and CPU seconds of one call, means of `repeats`.

    The threads are at work for `settle` seconds before. An untimed call comes first: the caches then hold its
    own data, not that of the side measured before.
    """
    if isinstance(call, Worker):
        return call.sample(repeats, settle)
    if settle:
        _keep_at_work(settle)
    call()
    cpu, wall = time.process_time(), clock()
    for _ in range(repeats):
        call()
    wall, cpu = clock() - wall, time.process_time() - cpu
    return wall / repeats, cpu / repeats


def _repeats(call: Call, clock: Clock, settle: float) -> int:
    """Calls for one sample; finding them warms the call up."""
    repeats = 1
    while True:
        elapsed = _sample(call, repeats, clock, settle)[0] * repeats
        if elapsed >= MIN_SAMPLE_SECONDS:
            return repeats
        # Aim slightly higher; at most tenfold, because a first sample may be off by as much.
        repeats = max(
            repeats + 1, min(10 * repeats, int(1.2 * repeats * MIN_SAMPLE_SECONDS / max(elapsed, 1e-9)))
        )


def measure(calls: Mapping[str, Call], rounds: int, clock: Clock = time.perf_counter) -> dict[str, Samples]:
    """Time every callable once in each of `rounds` rounds: A B B A ..., so that each follows each."""
    settle = SETTLE_SECONDS if torch.get_num_threads() > 1 else 0.0
    repeats = {name: _repeats(call, clock, settle) for name, call in calls.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        order = list(calls.items())
        for _ in range(rounds):
            for name, call in order:
                taken[name].append(_sample(call, repeats[name], clock, settle))
            order.reverse()
    finally:
        if collecting:
            gc.enable()
    return {
        name: Samples(
            tuple(wall for wall, _ in pairs),
            repeats[name],
            tuple(cpu / max(wall, 1e-9) for wall, cpu in pairs),
        )
        for name, pairs in taken.items()
    }


def run_case(
    case: Case, rounds: int, clock: Clock = time.perf_counter, roster: Roster | None = None
) -> Result:
    """Build, check and time one case, with the peers of `roster` that can do its work."""
    threads = torch.get_num_threads()
    try:
        return _run_case(case, rounds, clock, roster)
    finally:
        torch.set_num_threads(threads)  # a callable may have set its own


def _run_case(case: Case, rounds: int, clock: Clock, roster: Roster | None) -> Result:
    torch.manual_seed(0)
    fallbacks: dict[str, None] = {}

    def note(decision: object) -> None:
        if isinstance(decision, _dispatch.Decision) and decision.reason is not None:
            fallbacks[f"{decision.op}: {decision.reason}"] = None

    with _dispatch.recording(note):
        workload = case.build()
        try:
            if roster is not None:
                workload = replace(workload, calls={**workload.calls, **roster.calls(workload)})
            check(workload)
        except (WrongResultError, PeerError) as error:
            return Result(case, {}, {}, refused=str(error), fallbacks=tuple(fallbacks))
    samples = measure(workload.calls, rounds, clock)
    ours = samples[OURS].seconds
    speedups = {
        name: Quartiles.of([b / a for a, b in zip(ours, theirs.seconds, strict=True)])
        for name, theirs in samples.items()
        if name != OURS
    }
    return Result(case, samples, speedups, fallbacks=tuple(fallbacks))
