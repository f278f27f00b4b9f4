"""README's picture: how many times as fast as torch a training step is, from the committed reports."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

from .case import OURS
from .committed import NETWORKS, Reports, median, step
from .summary import Document

# Sides, their names and their colours: one stands out, and the others differ in lightness too.
_SIDES = {
    OURS: ("fastnn, TrainStep", "#d55e00"),
    "JAX": ("JAX jit", "#4d4d4d"),
    "torch.compile": ("torch.compile", "#0072b2"),
    "torch fused": ("torch, fused Adam", "#8cc5e3"),
}
_BAR, _GAP = 0.165, 0.14  # heights in inches: of a bar, and between two networks


def _steps(reports: Reports) -> dict[str, Document]:
    found = {network: step(reports, "1thread", "training step", network) for network in NETWORKS}
    return {network: result for network, result in found.items() if result is not None}


def _speedups(result: Document) -> dict[str, float]:
    return {
        side: median(result, "torch") / median(result, side) for side in _SIDES if side in result["times"]
    }


def figures(reports: Reports) -> str:
    """What the picture shows, in words: its description, by which an outdated one is recognised."""
    shown = (
        f"{network}: "
        + ", ".join(f"{_SIDES[side][0]} {value:.1f}" for side, value in _speedups(result).items())
        for network, result in _steps(reports).items()
    )
    return "; ".join(shown)


def outdated(path: Path, reports: Reports) -> bool:
    """Whether the picture at `path` differs from the reports, or is missing."""
    said = figures(reports)
    return bool(said) and not (path.exists() and escape(said) in path.read_text(encoding="utf-8"))


def draw(path: Path, reports: Reports) -> None:
    """Write the picture as SVG: bars for each network, on a white card that also works on dark pages."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    steps = _steps(reports)
    rows = sum(len(_speedups(result)) for result in steps.values())
    height = 1.35 + _BAR * rows + _GAP * (len(steps) - 1)
    figure = Figure(figsize=(8, height))
    figure.patch.set_alpha(0)
    card = FancyBboxPatch(
        (0.004, 0.006), 0.992, 0.988, "round,pad=0,rounding_size=0.02", transform=figure.transFigure
    )
    card.set(facecolor="white", edgecolor="#d0d7de", mutation_aspect=8 / height, zorder=-1)
    figure.add_artist(card)
    axes = figure.add_axes((0.205, 0.55 / height, 0.755, 1 - 1.3 / height))
    axes.patch.set_alpha(0)
    position = 0.0
    for network, result in steps.items():
        start, speedups = position, _speedups(result)
        for side, value in speedups.items():
            ours = side == OURS
            axes.barh(position, value, height=0.86 * _BAR, color=_SIDES[side][1])
            axes.annotate(
                f"{value:.1f}",
                (value, position),
                xytext=(3, -0.5),
                textcoords="offset points",
                va="center",
                fontsize=9 if ours else 8,
                fontweight="bold" if ours else "normal",
            )
            position += _BAR
        sizes, batch = network.split(", ")
        middle = (start + position - _BAR) / 2
        axes.text(
            -0.02,
            middle,
            f"{sizes}\nbatch {batch}",
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=9,
        )
        position += _GAP
    axes.set_ylim(position - _GAP - _BAR / 2, -_BAR / 2)
    axes.set_xlim(0, 1.07 * max(value for result in steps.values() for value in _speedups(result).values()))
    axes.axvline(1, color="#24292f", linewidth=1)
    axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=8, length=0)
    axes.set_xlabel("times as fast as torch with its default Adam (the line)", fontsize=9)
    axes.grid(axis="x", color="#e4e7eb")
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    figure.text(
        0.025,
        1 - 0.28 / height,
        "A training step: forward, cross-entropy, backward, Adam",
        fontsize=12,
        weight="bold",
    )
    handles = [axes.barh(0, 0, color=colour, label=name) for name, colour in _SIDES.values()]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.015, 1 - 0.31 / height),
        ncols=4,
        fontsize=9,
        frameon=False,
    )
    document = reports.document("1thread")
    cpu, torch = document["machine"]["cpu"], document["versions"]["torch"].partition("+")[0]
    where = f"{cpu}, one thread, float32; torch {torch}"
    figure.text(0.985, 0.012, where, fontsize=7, ha="right", va="bottom", color="#57606a")
    # Names that do not change from run to run, so that the file changes only with the figures.
    with matplotlib.rc_context({"svg.hashsalt": "fastnn", "svg.fonttype": "path"}):
        figure.savefig(
            path, format="svg", metadata={"Description": figures(reports), "Date": None, "Creator": None}
        )
