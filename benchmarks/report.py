"""The results of a run, as JSON, as a table for the terminal and as markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from tabulate import tabulate

from fastnn._diagnostics import counted

from .case import OURS, Case
from .machine import Peaks
from .memory import Comparison
from .runner import Quartiles, Result, Samples
from .summary import SCHEMA

_DTYPES = {"float32": "", "float64": " fp64", "bfloat16": " bf16", "float16": " fp16"}


# The two clocks are read one after the other and have different ticks.
_CLOCK_SLACK = 1.05

# Quartiles further apart than this part of the median are called wide.
_WIDE = 0.25


def _busy(samples: Samples) -> float:
    return statistics.median(samples.busy) if samples.busy else 0.0


def _is_starved(samples: Samples) -> bool:
    """Whether other processes had the processor part of the time: at least one thread is always running."""
    return bool(samples.busy) and _busy(samples) < 1 / _CLOCK_SLACK


def _is_wide(quartiles: Quartiles) -> bool:
    return quartiles.q3 - quartiles.q1 > _WIDE * quartiles.median


@dataclass(frozen=True)
class Report:
    """A whole run. `peaks` holds those of one thread and of `settings["threads"]` threads, by threads.

    `peers` has a description of each peer besides torch eager, `left_out` the reason why another is missing.
    `memory` holds measurements other than times.
    """

    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    peaks: Mapping[int, Peaks]
    results: Sequence[Result]
    cache_bytes: int
    peers: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    memory: Sequence[Comparison] = ()

    def peak(self, case: Case) -> float:
        """The measured peak that bounds a case, in its own unit of work a second."""
        peaks = self.peaks[self.settings["threads"]]
        if case.bytes:
            return peaks.copy
        return peaks.fma_float64 if case.dtype == torch.float64 else peaks.fma_float32

    def overworked(self, result: Result) -> dict[str, float]:
        """CPU seconds over wall seconds of each side that used more threads than the run grants."""
        allowed = self.settings["threads"] * _CLOCK_SLACK
        return {name: busy for name, samples in result.samples.items() if (busy := _busy(samples)) > allowed}

    def notes(self, result: Result) -> list[str]:
        """What one must know to read a result."""
        case, notes = result.case, []
        if result.refused:
            notes.append(f"refused: {result.refused}")
        if case.note:
            notes.append(case.note)
        if 0 < case.bytes <= self.cache_bytes:
            notes.append("fits the last cache: may exceed the copy peak, which is that of memory")
        if case.flops and case.dtype.itemsize == 2:
            notes.append("of the float32 peak: 16-bit values are summed in float32")
        notes += [f"{name} kept {busy:.2f} threads busy" for name, busy in self.overworked(result).items()]
        notes += [f"torch ran it instead: {reason}" for reason in result.fallbacks]
        return notes


def _work(case: Case) -> tuple[int, str]:
    return (case.flops, "GFLOP/s") if case.flops else (case.bytes, "GB/s")


def _result_json(report: Report, result: Result) -> dict[str, Any]:
    case = result.case
    return {
        "group": case.group,
        "op": case.op,
        "shape": case.shape,
        "dtype": case.dtype_name,
        "flops": case.flops,
        "bytes": case.bytes,
        "traffic": case.traffic,
        "at": case.at,
        "notes": report.notes(result),
        "refused": result.refused,
        "times": {
            name: {
                "seconds": asdict(samples.quartiles),
                "samples": len(samples.seconds),
                "repeats": samples.repeats,
                "threads_busy": _busy(samples),
            }
            for name, samples in result.samples.items()
        },
        "speedups": {name: asdict(speedup) for name, speedup in result.speedups.items()},
    }


def to_json(report: Report) -> dict[str, Any]:
    """The run as plain data, in seconds; peaks in FLOP/s and bytes/s."""
    return {
        "schema": SCHEMA,
        "machine": dict(report.machine),
        "versions": dict(report.versions),
        "settings": dict(report.settings),
        "peers": dict(report.peers),
        "left_out": dict(report.left_out),
        "peaks": [asdict(peaks) for peaks in report.peaks.values()],
        "results": [_result_json(report, result) for result in report.results],
        "memory": [asdict(comparison) for comparison in report.memory],
    }


def seconds(value: float) -> str:
    """Three digits and a unit: 12.3 us, 4.56 ms."""
    for factor, unit in ((1e6, "us"), (1e3, "ms")):
        if value * factor < 999.5:
            return f"{value * factor:#.3g}".rstrip(".") + f" {unit}"
    return f"{value:.3g} s"


def title(op: str, shape: str, dtype: str) -> tuple[str, str]:
    """Op and shape; a dtype other than float32 is added to the shape."""
    return op, shape + _DTYPES[dtype]


_HEADERS = (
    "op",
    "shape",
    OURS,
    "peer",
    "its time",
    "speed-up",
    "quartiles",
    "rate",
    "of peak",
    "",
)


def _rows(report: Report) -> tuple[list[tuple[str, ...]], list[str]]:
    rows: list[tuple[str, ...]] = []
    footnotes: dict[str, int] = {}
    last_op = ""
    for result in report.results:
        op, shape = title(result.case.op, result.case.shape, result.case.dtype_name)
        marks = ",".join(str(footnotes.setdefault(note, len(footnotes) + 1)) for note in report.notes(result))
        shown = op if op != last_op else ""
        last_op = op
        if result.refused:
            rows.append((shown, shape, "refused", "", "", "", "", "", "", marks))
            continue
        ours = result.samples[OURS].quartiles.median
        work, unit = _work(result.case)
        rate = work / ours
        cells = (shown, shape, seconds(ours))
        figures = (
            f"{rate / 1e9:#.3g} {unit}".replace(". ", " "),
            f"{rate / report.peak(result.case):.0%}",
            marks,
        )
        for peer, speedup in result.speedups.items():
            theirs = seconds(result.samples[peer].quartiles.median)
            spread = ("wide: " if _is_wide(speedup) else "") + f"{speedup.q1:.2f} - {speedup.q3:.2f}"
            ratio = f"{speedup.median:#.3g}".rstrip(".") if speedup.median >= 10 else f"{speedup.median:.2f}"
            rows.append((*cells, peer, theirs, f"{ratio} x", spread, *figures))
            cells, figures = ("", "", ""), ("", "", "")
    return rows, [f"{number}: {note}" for note, number in footnotes.items()]


def _size(size: int) -> str:
    return f"{size / 1024:.3g} KB" if size < 1 << 20 else f"{size / (1 << 20):.3g} MB"


def _peak_lines(report: Report) -> list[str]:
    return [
        f"measured peak, {counted(peaks.threads, 'thread')}: "
        f"FMA {peaks.fma_float32 / 1e9:.0f} GFLOP/s float32, {peaks.fma_float64 / 1e9:.0f} float64; "
        f"copy {peaks.copy / 1e9:.1f} GB/s read + write ({peaks.copy_by}, {peaks.copy_bytes >> 20} MB)"
        for peaks in report.peaks.values()
    ]


def _heading(report: Report) -> list[str]:
    machine, settings = report.machine, report.settings
    sizes = ", ".join(f"{name} {_size(size)}" for name, size in machine["caches"].items())
    busy = ": a busy machine, expect noise" if machine["load_average"] > machine["cores"] / 2 else ""
    return [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['isa']}" + (f"; {sizes}" if sizes else ""),
        ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        f"{counted(settings['threads'], 'thread')}, {settings['rounds']} interleaved rounds, "
        f"{settings['date']}, load {machine['load_average']:.1f} at the start{busy}",
        *_peak_lines(report),
        *(f"{name}: {description}" for name, description in report.peers.items()),
        *(f"left out: {name}, {reason}" for name, reason in report.left_out.items()),
    ]


_MEMORY_LEGEND = (
    "Peak of the resident memory beyond that before the call, each side in a process of its own; "
    "rest: without the gradients, which are results."
)
_MEMORY_HEADERS = ("memory", "shape", "side", "peak", "rest")
_MEMORY_ALIGNMENT = ("left", "left", "left", "right", "right")


def _memory_table(report: Report, tablefmt: str) -> list[str]:
    """The table of memory and its legend, or nothing."""
    rows = [
        (
            comparison.op,
            f"{comparison.shape} {comparison.dtype}",
            side,
            _size(memory.peak),
            _size(memory.rest),
        )
        for comparison in report.memory
        for side, memory in comparison.sides.items()
    ]
    if not rows:
        return []
    table = tabulate(
        rows, _MEMORY_HEADERS, tablefmt=tablefmt, colalign=_MEMORY_ALIGNMENT, disable_numparse=True
    )
    return ["", table, "", _MEMORY_LEGEND]


_LEGEND = (
    "speed-up: median over rounds of the peer's time / ours, Python call included; "
    "rate and fraction of the measured peak are ours, of the compulsory work."
)


def _doubts(report: Report) -> list[str]:
    """Which figures are unreliable, if any."""
    speedups = [speedup for result in report.results for speedup in result.speedups.values()]
    wide = sum(map(_is_wide, speedups))
    starved = sum(any(map(_is_starved, result.samples.values())) for result in report.results)
    lines = []
    if wide:
        lines.append(
            f"wide: quartiles more than {_WIDE:.0%} of the median apart, {wide} of {len(speedups)}: these "
            "speed-ups are rough"
        )
    if starved:
        lines.append(
            f"NOT RELIABLE: other processes took the processors in {starved} of {len(report.results)} "
            "cases; measure again on an idle machine"
        )
    return lines


def to_text(report: Report) -> str:
    """The table for a terminal."""
    rows, footnotes = _rows(report)
    table = tabulate(rows, _HEADERS, tablefmt="simple", colalign=_ALIGNMENT, disable_numparse=True)
    memory = _memory_table(report, "simple")
    return "\n".join([*_heading(report), "", table, "", _LEGEND, *footnotes, *memory, *_doubts(report)])


def to_markdown(report: Report) -> str:
    """The same as a markdown page."""
    rows, footnotes = _rows(report)
    table = tabulate(rows, _HEADERS, tablefmt="github", colalign=_ALIGNMENT, disable_numparse=True)
    heading = [f"- {line}" for line in _heading(report)]
    notes = [f"- {line}" for line in (*footnotes, *_doubts(report))]
    body = ["# fastnn benchmark", "", *heading, "", table, "", _LEGEND, "", *notes]
    return "\n".join(body).rstrip() + "\n" + "\n".join([*_memory_table(report, "github"), ""])


_ALIGNMENT = ("left", "left", "right", "left", "right", "right", "right", "right", "right", "left")
