"""Training seconds to a test accuracy on MNIST: 784-128-10, batch 128, five epochs of Adam, one-cycle rate.

All contestants start from the same weights and see the same images in the same order, with the data in
memory: as bytes for `TrainStep`, which normalises them, and normalised once as floats for the others, which
is faster for them than doing it for each batch. They alternate every few steps, `TrainStep` by its `epoch`.
Timed is all that training needs: gathering the batches, setting the rates, the steps. Not timed are the
single normalisation and the evaluation after each turn, which torch's ops do.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnn
import fastnn.nn
import fastnn.optim
from fastnn.data import DataError, Dataset, load
from fastnn.training.model import torch_mlp
from fastnn.training.schedule import lr_at

from . import machine
from .case import OURS
from .cases.recipe import EAGER, eager_step

SEEDS = 5
TARGET = 0.98
HIDDEN, BATCH, EPOCHS, RATE = 128, 128, 5, 5e-3
# An evaluation every 25 steps gives the time to an accuracy within about one hundredth of the run.
_TURN = 25

Steps = Callable[[Tensor, list[float]], object]
"""Takes the rows to train on, `BATCH` a step, and the learning rate of each step."""


@dataclass
class Curve:
    """Seconds of training and test accuracy at each evaluation of a run."""

    seconds: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)

    def seconds_to(self, target: float) -> float | None:
        """Training seconds at the first evaluation that reached `target`."""
        reached = (s for s, a in zip(self.seconds, self.accuracy, strict=True) if a >= target)
        return next(reached, None)


class Contestant(Curve):
    """One side on its way through one run."""

    def __init__(self, model: nn.Module, take: Steps) -> None:
        super().__init__([0.0])
        self.model = model
        self.take = take


def rates_of(steps: int) -> list[float]:
    """The learning rate of each step of a run."""
    return [lr_at("onecycle", number, steps, RATE) for number in range(steps)]


def eager(
    model: nn.Module,
    loss_of: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    rows: Tensor,
    rates: list[float],
) -> None:
    """Steps of `BATCH` rows each as they are usually written, each with its rate."""
    step = eager_step(model, loss_of, optimizer)
    for batch, rate in zip(rows.split(BATCH), rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        step(images.index_select(0, batch), labels.index_select(0, batch))


def _contestants(data: Dataset, images: Tensor, normalised: Tensor, seed: int) -> dict[str, Contestant]:
    widths = [data.inputs, HIDDEN, data.classes]
    labels = torch.from_numpy(data.train_labels)
    torch.manual_seed(seed)
    initial = torch_mlp(widths).state_dict()

    def ours() -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        model = fastnn.nn.MLP(widths)
        model.load_state_dict(initial)
        return model, fastnn.nn.CrossEntropyLoss(), fastnn.optim.Adam(model.parameters(), lr=RATE)

    model, loss_of, optimizer = ours()
    step = fastnn.TrainStep(model, loss_of, optimizer, mean=data.mean / 255, std=data.std / 255)
    made = {
        OURS: Contestant(model, lambda rows, rates: step.epoch(images, labels, BATCH, rows, lr=rates)),
    }
    model, loss_of, optimizer = ours()
    made[EAGER] = Contestant(model, partial(eager, model, loss_of, optimizer, normalised, labels))
    theirs = torch_mlp(widths)
    theirs.load_state_dict(initial)
    fused = torch.optim.Adam(theirs.parameters(), lr=RATE, fused=True)
    take = partial(eager, theirs, nn.CrossEntropyLoss(), fused, normalised, labels)
    made["torch fused"] = Contestant(theirs, take)
    return made


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    parameters = list(model.parameters())
    for w, b in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = F.relu(F.linear(x, w, b))
    logits = F.linear(x, parameters[-2], parameters[-1])
    return (logits.argmax(1) == labels).double().mean().item()


def race(data: Dataset, seed: int) -> dict[str, Contestant]:
    """One run of each contestant, in turns whose order is reversed each time."""
    images = torch.from_numpy(data.train_images)
    test = torch.from_numpy(data.test_images).float().sub_(data.mean).div_(data.std)
    answers = torch.from_numpy(data.test_labels)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(images), generator=generator) for _ in range(EPOCHS)]
    rates = iter(rates_of(EPOCHS * -(-len(images) // BATCH)))
    normalised = images.float().sub_(data.mean).div_(data.std)
    contestants = _contestants(data, images, normalised, seed)
    for each in contestants.values():
        each.accuracy.append(accuracy(each.model, test, answers))
    turns = list(contestants.values())
    for rows in itertools.chain.from_iterable(order.split(_TURN * BATCH) for order in orders):
        of_turn = list(itertools.islice(rates, -(-len(rows) // BATCH)))
        for each in turns:
            began = time.perf_counter()
            each.take(rows, of_turn)
            each.seconds.append(each.seconds[-1] + time.perf_counter() - began)
            each.accuracy.append(accuracy(each.model, test, answers))
        turns.reverse()
    return contestants


def median_time(values: Sequence[float | None]) -> float | None:
    """The median, with a run that never reached the target treated as infinite."""
    median = statistics.median(float("inf") if value is None else value for value in values)
    return None if median == float("inf") else median


def summed_up(races: Sequence[Mapping[str, Curve]]) -> dict[str, dict[str, Any]]:
    """Of each side what its runs in all races gave: plain data for JSON."""
    sides = {}
    for name in races[0]:
        runs = [race[name] for race in races]
        to_target = [run.seconds_to(TARGET) for run in runs]
        sides[name] = {
            "to_target": to_target,
            "median_to_target": median_time(to_target),
            "median_seconds": statistics.median(run.seconds[-1] for run in runs),
            "median_accuracy": statistics.median(run.accuracy[-1] for run in runs),
            "curves": [{"seconds": run.seconds, "accuracy": run.accuracy} for run in runs],
        }
    return sides


def measure(settings: dict[str, Any], *, quick: bool = False) -> dict[str, Any] | None:
    """Run ``settings["rounds"]`` seeds; plain data for JSON, or None if MNIST is not available.

    A quick one takes a tenth of the training images.
    """
    try:
        data = load(None, lambda _: None)
    except (DataError, OSError):
        return None
    if data.name != "mnist":
        return None
    data = data.first(len(data.train_images) // 10 if quick else None)
    race(data.first(BATCH), 0)  # one-time costs are paid here
    races = [race(data, seed) for seed in range(settings["rounds"])]
    return {
        "schema": 1,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "settings": settings,
        "network": [data.inputs, HIDDEN, data.classes],
        "batch": BATCH,
        "epochs": EPOCHS,
        "highest_rate": RATE,
        "target": TARGET,
        "sides": summed_up(races),
    }


def _heading(document: dict[str, Any]) -> tuple[str, str]:
    machine_of, versions, settings = (document[name] for name in ("machine", "versions", "settings"))
    network = "-".join(map(str, document["network"]))
    return (
        f"MNIST, {network}, batch {document['batch']}, {document['epochs']} epochs, Adam, one-cycle rate "
        f"up to {document['highest_rate']:g}, {settings['rounds']} seeds",
        f"{machine_of['cpu']}, {machine_of['isa']}, threads {settings['threads']}; "
        f"fastnn {versions['fastnn']}, torch {versions['torch']}; {settings['date']}",
    )


def shown(value: float | None) -> str:
    """Seconds to a target, or that it was not reached."""
    return "not reached" if value is None else f"{value:.2f} s"


def to_markdown(document: dict[str, Any]) -> str:
    """The report as a page."""
    from tabulate import tabulate  # which the race on a GPU does without

    rows = [
        (
            name,
            shown(side["median_to_target"]),
            ", ".join(shown(value) for value in side["to_target"]),
            f"{side['median_seconds']:.2f} s",
            f"{side['median_accuracy']:.2%}",
        )
        for name, side in document["sides"].items()
    ]
    headers = (
        "",
        f"to {document['target']:.0%}, median",
        "each seed",
        "whole run, median",
        "accuracy, median",
    )
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    lines = [f"- {line}" for line in _heading(document)]
    legend = "Seconds of training: batches, rate and steps; evaluation excluded. The sides take turns."
    return "\n".join(["# Time to accuracy", "", *lines, "", table, "", legend, ""])


def save(document: dict[str, Any], path: Path) -> None:
    """Write the curves, a thin line for each seed."""
    from matplotlib.figure import Figure

    from . import plots

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, side in document["sides"].items():
        for i, curve in enumerate(side["curves"]):
            axes.plot(
                curve["seconds"],
                [100 * value for value in curve["accuracy"]],
                color=plots.colour(name),
                linewidth=1,
                alpha=0.8,
                label=f"{name}: {shown(side['median_to_target'])}" if i == 0 else None,
            )
    axes.axhline(100 * document["target"], color="black", linewidth=0.8, linestyle="--")
    axes.set_ylim(90, 99)
    axes.set_xlim(0)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("test accuracy, %")
    axes.grid(color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title=f"median to {document['target']:.0%}", fontsize=9, frameon=False, loc="lower right")
    axes.set_title("\n".join(_heading(document)), fontsize=9, loc="left")
    plots.save(figure, path)
