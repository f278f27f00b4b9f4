"""The speed-ups as a horizontal bar chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .report import Report, threads, title

_INCHES_A_BAR = 0.235
_FASTER, _SLOWER = "#1f77b4", "#c0392b"
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def _positions(ops: Sequence[str]) -> list[float]:
    """One apart, and half a bar more where the op changes."""
    positions: list[float] = []
    for i, op in enumerate(ops):
        previous = positions[-1] if positions else -1.0
        positions.append(previous + (1.0 if i == 0 or op == ops[i - 1] else 1.5))
    return positions


def save(report: Report, path: Path) -> None:
    """Write a PNG: a bar for each case and peer from 1 to the speed-up, on a logarithmic axis."""
    bars = [
        (result.case, peer, speedup) for result in report.results for peer, speedup in result.speedups.items()
    ]
    medians = [speedup.median for _, _, speedup in bars]
    # Room for the figure at a bar's end; one wild whisker must not squeeze all bars.
    low, high = min([0.8, *(m / 1.5 for m in medians)]), max([2.0, *(m * 1.5 for m in medians)])
    positions = _positions([case.op.split()[0] for case, _, _ in bars])
    height = 1.5 + _INCHES_A_BAR * max(positions, default=0)
    figure = Figure(figsize=(10, max(height, 2.5)), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.barh(
        positions,
        [median - 1 for median in medians],
        left=1,
        height=0.72,
        color=[_FASTER if median >= 1 else _SLOWER for median in medians],
        xerr=(
            [speedup.median - speedup.q1 for _, _, speedup in bars],
            [speedup.q3 - speedup.median for _, _, speedup in bars],
        ),
        error_kw={"ecolor": "#444444", "elinewidth": 0.8},
    )
    labels = []
    for position, (case, peer, speedup) in zip(positions, bars, strict=True):
        labels.append("  ".join(title(case)) + ("" if peer == "torch" else f"  vs {peer}"))
        end = min(max(speedup.q3, 1.0), high / 1.2)
        axes.annotate(
            f"{speedup.median:.2f}x",
            (end, position),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(positions, labels, fontsize=8)
    axes.set_ylim(max(positions, default=0) + 0.6, -0.6)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.axvline(1.0, color="black", linewidth=1)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9)
    machine, versions, settings = report.machine, report.versions, report.settings
    axes.set_title(
        f"fastnn {versions['fastnn']} over torch {versions['torch']}: times faster (right) or slower (left)\n"
        f"{machine['cpu']}, {machine['isa']}, {threads(settings['threads'])}; median and quartiles",
        fontsize=9,
        loc="left",
    )
    figure.savefig(path)
