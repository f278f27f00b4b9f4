"""The plots of a report, as SVG: speed-up bars, a roofline, and lines over what a sweep varies.

They are drawn from the report's JSON. ``python -m benchmarks.plots FILE`` draws those of a summary again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from fastnn._diagnostics import counted

from . import accuracy, summary
from .case import OURS
from .committed import median
from .report import seconds, title
from .summary import Document

_BAR_INCHES = 0.135
_GAP = 0.8  # between two cases, in bars
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)

# One colour for each side in all plots (Okabe and Ito: distinguishable by colour-blind readers too).
_COLOURS = {
    OURS: "#d55e00",
    "fastnn eager": "#e69f00",
    "torch": "#0072b2",
    "torch fused": "#56b4e9",
    "torch.compile": "#004060",
    "oneDNN": "#009e73",
    "OpenBLAS": "#cc79a7",
    "OpenBLAS AVX-512": "#7d3c61",
    "JAX": "#555555",
    "scikit-learn": "#b8a000",
}
_CHAPTERS: dict[str, Callable[[Document], bool]] = {
    "products": lambda result: (
        result["op"].split()[0] in ("product", "linear", "gram", "linear_cross_entropy")
    ),
    "step": lambda result: result["op"] in ("training step", "critic step"),
    "memory": lambda result: result["bytes"] > 0,
}


def save_all(report: Document, stem: Path) -> list[Path]:
    """Write the plots that the cases of a report allow, as ``STEM-<plot>.svg``; returns their paths."""
    measured = [result for result in report["results"] if not result["refused"]]
    once = [result for result in measured if not result["at"]]
    made = {}
    for name, belongs in _CHAPTERS.items():
        if chosen := [result for result in once if belongs(result)]:
            made[name] = _bars(report, chosen)
    if chosen := [result for result in once if result["traffic"] and result["dtype"] == "float32"]:
        made["roofline"] = _roofline(report, chosen)
    if chosen := [result for result in measured if result["at"]]:
        made["lines"] = _lines(report, chosen)
    paths = [stem.with_name(f"{stem.name}-{name}.svg") for name in made]
    for path, figure in zip(paths, made.values(), strict=True):
        save(figure, path)
    return paths


def to_markdown(plots: Sequence[Path]) -> str:
    """The plots as pictures for a page in the same folder."""
    return "".join(f"\n![{path.stem}]({path.name})\n" for path in plots)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, in which text stays text; the same figure gives the same file."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastnn"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def colour(side: str) -> str:
    """The colour of a side in all plots."""
    return _COLOURS.get(side, "#999999")


def _heading(axes: Axes | Figure, report: Document, first: str) -> None:
    machine, versions = report["machine"], report["versions"]
    text = (
        f"{first}\n{machine['cpu']}, {machine['isa']}, {counted(report['settings']['threads'], 'thread')}; "
        f"fastnn {versions['fastnn']}, torch {versions['torch']}"
    )
    if isinstance(axes, Figure):
        axes.suptitle(text, fontsize=9, x=0.01, ha="left")
    else:
        axes.set_title(text, fontsize=9, loc="left")


def _ordered(sides: Iterable[str]) -> list[str]:
    """In the order of the colours, each once."""
    known = list(_COLOURS)
    return sorted(dict.fromkeys(sides), key=lambda side: known.index(side) if side in known else len(known))


def _bars(report: Document, results: Sequence[Document]) -> Figure:
    """For each case a bar for each peer, from 1 to the speed-up over it, on a logarithmic axis."""
    peers = _ordered(peer for result in results for peer in result["speedups"])
    medians = [speedup["median"] for result in results for speedup in result["speedups"].values()]
    # Room for the figure at a bar's end; one extreme whisker must not squeeze all bars.
    low, high = min([0.8, *(m / 1.5 for m in medians)]), max([2.0, *(m * 1.5 for m in medians)])
    bars = len(medians) + _GAP * len(results)
    figure = Figure(figsize=(10, 1.5 + _BAR_INCHES * bars), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    position, ticks = 0.0, []
    for result in results:
        start = position
        for peer in _ordered(result["speedups"]):
            q1, middle, q3 = (result["speedups"][peer][name] for name in ("q1", "median", "q3"))
            axes.barh(position, middle - 1, left=1, height=0.85, color=colour(peer))
            axes.plot([q1, q3], [position] * 2, color="black", linewidth=0.7, alpha=0.7)
            axes.annotate(
                f"{middle:.2f}",
                (min(max(q3, 1.0), high / 1.2), position),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
            )
            position += 1
        ticks.append((start + position - 1) / 2)
        position += _GAP
    axes.set_yticks(
        ticks,
        ["  ".join(title(result["op"], result["shape"], result["dtype"])) for result in results],
        fontsize=8,
    )
    axes.set_ylim(position, -1)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.axvline(1.0, color="black", linewidth=1)
    _clean(axes, "x")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9)
    handles = [axes.barh(0, 0, color=colour(peer), label=peer) for peer in peers]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(peers), fontsize=8, frameon=False)
    _heading(
        axes, report, f"{OURS} over each peer: times faster (right) or slower (left), median and quartiles"
    )
    return figure


def _clean(axes: Axes, grid: str) -> None:
    axes.grid(axis=grid, color="#dddddd")  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right", *(["left"] if grid == "x" else [])]].set_visible(False)


def _roofline(report: Document, results: Sequence[Document]) -> Figure:
    """Rate over arithmetic intensity, under the measured peaks: a column of points for each case."""
    used = report["settings"]["threads"]
    peaks = next(peaks for peaks in report["peaks"] if peaks["threads"] == used)
    peak, copy = peaks["fma_float32"] / 1e9, peaks["copy"] / 1e9
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log")
    intensities = [result["flops"] / result["traffic"] for result in results]
    left, right = min(intensities) / 2, max(intensities) * 2
    ridge = peak / copy
    axes.plot(
        [left, max(ridge, left), right],
        [min(peak, left * copy), peak, peak],
        color="black",
        label=f"measured: FMA {peak:.0f} GFLOP/s, copy {copy:.1f} GB/s",
    )
    sides = _ordered(side for result in results for side in result["times"])
    lowest = peak
    for side in sides:
        points = [
            (x, result["flops"] / median(result, side) / 1e9)
            for x, result in zip(intensities, results, strict=True)
            if side in result["times"]
        ]
        lowest = min([lowest, *(rate for _, rate in points)])
        ours = side == OURS
        axes.scatter(
            [intensity for intensity, _ in points],
            [rate for _, rate in points],
            s=46 if ours else 22,
            marker="D" if ours else "o",
            facecolors=colour(side) if ours else "none",
            edgecolors=colour(side),
            linewidths=1.2,
            label=side,
            zorder=3 if ours else 2,
        )
    axes.set_xlim(left, right)
    axes.set_ylim(lowest / 1.5, peak * 1.6)
    axes.set_xlabel("arithmetic intensity: FLOPs for each byte that must be read or written once")
    axes.set_ylabel("GFLOP/s")
    _clean(axes, "both")
    axes.legend(fontsize=8, loc="lower right", frameon=False)
    _heading(
        axes, report, "Roofline, float32: a point in a cache may lie above the slope, which is that of memory"
    )
    return figure


def _lines(report: Document, results: Sequence[Document]) -> Figure:
    """One panel per varied quantity: seconds of a step over it, one line per side."""
    ops = list(dict.fromkeys(result["op"] for result in results))
    figure = Figure(figsize=(4.2 * len(ops), 4.4), layout="constrained")
    panels = figure.subplots(1, len(ops), squeeze=False)[0]
    sides = _ordered(side for result in results for side in result["times"])
    for axes, op in zip(panels, ops, strict=True):
        chosen = [result for result in results if result["op"] == op]
        for side in sides:
            points = [(result["at"], median(result, side)) for result in chosen if side in result["times"]]
            axes.plot(
                *zip(*points, strict=True),
                color=colour(side),
                marker="D" if side == OURS else "o",
                markersize=4,
                linewidth=2 if side == OURS else 1.2,
                label=side,
            )
        values = [result["at"] for result in chosen]
        axes.set_yscale("log")
        if max(values) > 8 * min(values):
            axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(values))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(labelsize=8)
        axes.set_xlabel(f"{op.removeprefix('step over ')} ({chosen[0]['shape']} first)", fontsize=8)
        _clean(axes, "both")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(sides), fontsize=8, frameon=False)
    _heading(figure, report, "Time of one training step (forward, cross-entropy, backward, Adam)")
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the plots of each report of a summary, in the same folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("summary", type=Path, metavar="FILE", help="as benchmarks/results/NAME.json")
    path: Path = parser.parse_args(arguments).summary
    for name, report in summary.reports(path).items():
        stem = path.with_name(f"{path.stem}-{name}")
        if "sides" in report:
            accuracy.save(report, stem.with_suffix(".svg"))
        elif "peaks" in report:
            save_all(report, stem)
    return 0


if __name__ == "__main__":
    sys.exit(main())
