"""What a run leaves: metrics.json, the pictures, and the table for the terminal."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict
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

    ``train_seconds`` is the time inside the training steps, batches included; set-up, tests and display are
    not. ``seconds_to_target`` is that up to the first test that met the target, null without one. ``epochs``
    counts the epochs that were completed.
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
        "seconds_to_target": run.seconds_to_target,
        "images_per_second": images_per_second(run),
        "epochs": run.step // run.steps_per_epoch,
        "steps": run.step,
        "layers": run.layers,
        "parameters": sum(parameter.numel() for parameter in run.parts.model.parameters()),
        "train_images": len(run.batches.images),
        "test_images": len(run.data.test_labels),
        "seed": run.config.seed,
        "settings": asdict(run.config),
        "device": str(run.device),
        "processes": run.ranks.size,
        "threads": torch.get_num_threads(),
        "versions": {
            "fastnn": fastnn.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        "history": [{name: _number(value) for name, value in vars(test).items()} for test in run.history],
    }


def comparison(ours: Run, native: Run) -> dict[str, Any]:
    """torch's side of a comparison, and how many times faster fastnn trained (see `speed_up`)."""
    return {
        "torch": {
            "backend": native.backend,
            "test_accuracy": native.history[-1].test_accuracy,
            "train_seconds": native.train_seconds,
            "seconds_to_target": native.seconds_to_target,
            "images_per_second": images_per_second(native),
        },
        "speed_up": speed_up(ours, native),
    }


def speed_up(run: Run, baseline: Run) -> float | None:
    """How many times faster than `baseline` the run came to its end, or to the target that both have.

    None if either did not reach the target: then there is nothing to compare.
    """
    ours, theirs = _seconds(run), _seconds(baseline)
    return None if ours is None or theirs is None else theirs / ours


def images_per_second(run: Run) -> float:
    """Training images a second, over the whole run."""
    return run.images_seen(run.step) / run.train_seconds


def outcome(run: Run) -> str:
    """Whether and when the run met its target, in words."""
    target, seconds = percent(run.config.target or 0.0), run.seconds_to_target
    if seconds is None:
        best = max(test.test_accuracy for test in run.history)
        return f"{run.name}: {target} test accuracy was not reached; the best was {best:.2%}"
    return f"{run.name}: {target} test accuracy reached after {seconds:.3f} s of training"


def percent(part: float) -> str:
    """A fraction as a user would write it: 0.98 as 98%, 0.975 as 97.5%."""
    return f"{100 * part:.10g}%"


def _seconds(run: Run) -> float | None:
    """The time that counts: to the target where there is one."""
    return run.train_seconds if run.config.target is None else run.seconds_to_target


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

    target = runs[0].config.target
    rows = []
    for run in runs:
        seconds, gain = _seconds(run), speed_up(run, runs[-1])
        row = [
            run.backend,
            f"{run.history[-1].test_accuracy:.2%}",
            f"{run.history[-1].test_loss:.4f}",
            "not reached" if seconds is None else f"{seconds:.3f}",
            f"{images_per_second(run):,.0f}",
            "" if gain is None else f"{gain:.2f} x",
        ]
        rows.append(row if len(runs) > 1 else row[:-1])
    time = "train seconds" if target is None else f"seconds to {percent(target)}"
    headers = ["backend", "test accuracy", "test loss", time, "images/s", "speed-up"]
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
