"""The committed reports, as README.md and docs/ show them."""

from __future__ import annotations

from pathlib import Path

from . import summary
from .summary import Document

MACHINE = "epyc-zen4"
PROGRAMS = "xeon-emeraldrapids"  # the machine of the captured updates
ERRORS = "epyc-zen3"  # the machine of the rounding errors, which depend only on its instruction set
# Sizes of the layers, and batch, of the training steps that are shown, the smallest first.
NETWORKS = ("17-64-64-6, 32", "784-28-10, 64", "784-128-10, 64", "784-512-10, 128", "784-1024-1024-10, 512")


class Reports:
    """The reports of machines, from their summaries in a folder; a missing one has no results."""

    def __init__(self, folder: Path, machine: str = MACHINE) -> None:
        self._folder, self._machine = folder, machine

    def document(self, name: str, machine: str | None = None) -> Document:
        path = self._folder / f"{machine or self._machine}.json"
        return summary.reports(path).get(name, {})

    def results(self, name: str, machine: str | None = None) -> dict[tuple[str, str, str], Document]:
        """The result of each case that was not refused, by op, shape and dtype."""
        return {
            (result["op"], result["shape"], result["dtype"]): result
            for result in self.document(name, machine).get("results", ())
            if not result["refused"]
        }


def step(reports: Reports, name: str, op: str, network: str) -> Document | None:
    """The result of a step of one of `NETWORKS`, or of another network in the same notation."""
    return reports.results(name).get((op, network.replace(", ", ", batch "), "float32"))


def median(result: Document, side: str) -> float:
    """Seconds that a side took."""
    value: float = result["times"][side]["seconds"]["median"]
    return value
