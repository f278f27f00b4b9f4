"""What a run leaves behind: metrics.json, the pictures, and the table for the terminal."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastnn
from fastnn.data.atomic import atomic_file
from fastnn.training.plots import plot_curves, plot_digits
from fastnn.training.run import Run


def metrics(run: Run) -> dict[str, Any]:
    """The results and everything that led to them, as JSON values.

    ``train_seconds`` is the time inside the training steps, batches included; set-up, evaluation and display
    are not. ``epochs`` counts the epochs that were completed.
    """
    last = run.history[-1]
    return {
        "dataset": run.data.name,
        "data_source": run.data.source,
        "backend": run.backend,
        "test_accuracy": last.test_accuracy,
        "test_loss": _number(last.test_loss),
        "train_loss": _number(last.train_loss),
        "train_seconds": run.train_seconds,
        "images_per_second": images_per_second(run),
        "epochs": len(run.history),
        "steps": run.step,
        "layers": run.layers,
        "parameters": sum(parameter.numel() for parameter in run.parts.model.parameters()),
        "train_images": len(run.batches.images),
        "test_images": len(run.data.test_labels),
        "seed": run.config.seed,
        "settings": run.config.to_json(),
        "device": str(run.device),
        "threads": torch.get_num_threads(),
        "versions": {
            "fastnn": fastnn.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        "history": [{name: _number(value) for name, value in vars(epoch).items()} for epoch in run.history],
    }


def comparison(ours: Run, native: Run) -> dict[str, Any]:
    """torch's side of a comparison, and how many times faster fastnn trained."""
    return {
        "torch": {
            "backend": native.backend,
            "test_accuracy": native.history[-1].test_accuracy,
            "train_seconds": native.train_seconds,
            "images_per_second": images_per_second(native),
        },
        "speed_up": native.train_seconds / ours.train_seconds,
    }


def images_per_second(run: Run) -> float:
    """Training images a second, over the whole run."""
    full, rest = divmod(run.step, run.steps_per_epoch)
    return (full * len(run.batches.images) + rest * run.config.batch_size) / run.train_seconds


def write_report(directory: Path, runs: Sequence[Run]) -> None:
    """Write metrics.json, curves.png and digits.png of ``runs[0]``; the others are compared with it.

    Each file appears whole or not at all.
    """
    first = runs[0]
    values = metrics(first)
    if len(runs) == 2:
        values["compare"] = comparison(*runs)
    with atomic_file(directory / "metrics.json") as file:
        file.write((json.dumps(values, indent=2) + "\n").encode())
    with atomic_file(directory / "curves.png") as file:
        plot_curves(file, runs)
    with atomic_file(directory / "digits.png") as file:
        plot_digits(file, first, first.evaluate())


def table(runs: Sequence[Run]) -> str:
    """The results for the terminal; with two runs, torch's last, the speed-up over it too."""
    from tabulate import tabulate

    baseline = runs[-1].train_seconds
    rows = []
    for run in runs:
        row = [
            run.backend,
            f"{run.history[-1].test_accuracy:.2%}",
            f"{run.history[-1].test_loss:.4f}",
            f"{run.train_seconds:.2f}",
            f"{images_per_second(run):,.0f}",
        ]
        rows.append([*row, f"{baseline / run.train_seconds:.2f} x"] if len(runs) > 1 else row)
    headers = ["backend", "test accuracy", "test loss", "train seconds", "images/s", "speed-up"]
    return tabulate(
        rows,
        headers[: len(rows[0])],
        tablefmt="simple",
        colalign=("left", *["right"] * (len(rows[0]) - 1)),
        disable_numparse=True,
    )


def _number(value: float) -> float | None:
    """JSON has no word for nan and inf."""
    return value if math.isfinite(value) else None
