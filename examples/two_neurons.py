"""Two neurons learn a parabola, in 100,000 steps.

A network 1-2-1 with sigmoids, seven numbers in all, is to fit ten points of y = x^2 - x/2 + 25/16:

    prediction = V sigmoid(W x + b) + c        loss = sum |prediction - y|

by gradient descent, p <- p - 0.001 dloss/dp. There is next to nothing to compute in such a step: with torch
all its time goes into calling some thirty ops one after the other. `fastnn.TrainStep.epoch` takes thousands
of steps in one native call.

    python examples/two_neurons.py [--out DIR] [--small]
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor
from tqdm import tqdm

import fastnn

matplotlib.use("agg")
import matplotlib.pyplot as plt

LR, CHUNK = 1e-3, 5000  # torch and fastnn take turns, so many steps each
COLORS = {"torch": "#d9730d", "fastnn": "#0b6e99"}
CLAIMS: dict[str, dict[str, Any]] = {}


def claim(name: str, value: float, **expectation: float) -> None:
    """Note what `value` is expected to be: `at_most`, or `expected` within `tolerance`."""
    if "at_most" in expectation:
        holds = value <= expectation["at_most"]
    else:
        holds = abs(value - expectation["expected"]) <= expectation["tolerance"]
    CLAIMS[name] = {"value": value, **expectation, "holds": holds}
    print(f"{'ok  ' if holds else 'FAIL'} {name}: {value:.6g} ({expectation})")


def train_torch(model: torch.nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """The loop as one writes it."""
    loss_fn = torch.nn.L1Loss(reduction="sum")
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def train_fastnn(model: torch.nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """The same steps. An `epoch` takes the rows that `permutation` names, batch by batch, and it may name
    some more than once: here all ten for each step."""
    optimizer = fastnn.optim.SGD(model.parameters(), lr=LR)
    step = fastnn.TrainStep(model, torch.nn.L1Loss(reduction="sum"), optimizer)
    rows = torch.arange(len(x)).repeat(steps)
    return step.epoch(x, y, batch_size=len(x), permutation=rows)


def draw(file: Path, x: Tensor, y: Tensor, models: Any, losses: Any, seconds: Any, steps: int) -> None:
    figure, (fit, curve, bars) = plt.subplots(
        1, 3, figsize=(12, 4), layout="constrained", width_ratios=(1.2, 1.2, 0.8)
    )
    figure.suptitle(f"Two sigmoid neurons fit a parabola: {steps:,} steps of gradient descent")
    model = models["fastnn"]
    grid = torch.linspace(-1.2, 1.2, 200, dtype=x.dtype)[:, None]
    with torch.no_grad():
        neurons = model[1](model[0](grid)) * model[2].weight  # what each adds to the constant
        fit.plot(
            grid, grid**2 - grid / 2 + 25 / 16, color="#c9c9c9", linewidth=5, label="$x^2 - x/2 + 25/16$"
        )
        fit.plot(grid, model(grid), color=COLORS["fastnn"], label="the network")
        for number, part in enumerate(neurons.T):
            fit.plot(
                grid, part - part.mean() + y.mean(), "--", linewidth=1, label=f"neuron {number + 1}, shifted"
            )
    fit.plot(x, y, "o", color="black", markersize=4, label="the ten points")
    fit.set(title="The fit", xlabel="x", ylabel="y")
    for name, width in (("torch", 4), ("fastnn", 1.2)):
        at = range(0, len(losses[name]), 100)
        curve.plot(at, losses[name][::100], color=COLORS[name], linewidth=width, label=name)
    curve.set(title="The loss of each step", xlabel="step", ylabel="sum of absolute errors", yscale="log")
    curve.locator_params(axis="x", nbins=5)
    drawn = bars.bar(list(seconds), list(seconds.values()), color=[COLORS[name] for name in seconds])
    bars.bar_label(drawn, [f"{s:.2f} s" for s in seconds.values()], padding=3)
    bars.set(title=f"Time of {steps:,} steps", ylabel="seconds", ylim=(0, 1.15 * max(seconds.values())))
    fit.legend(frameon=False, fontsize=8)
    curve.legend(frameon=False)
    for axis in (fit, curve, bars):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/two_neurons"), help="for the results")
    parser.add_argument("--small", action="store_true", help="torch takes 5,000 of the steps")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(1)
    x = torch.linspace(-1, 1, 10)[:, None]
    y = x**2 - x / 2 + 25 / 16
    start = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Sigmoid(), torch.nn.Linear(2, 1))
    models = {name: copy.deepcopy(start) for name in ("torch", "fastnn")}
    train = {"torch": train_torch, "fastnn": train_fastnn}
    steps = {"torch": 5_000 if args.small else 100_000, "fastnn": 100_000}
    losses: dict[str, list[Tensor]] = {name: [] for name in models}
    seconds = dict.fromkeys(models, 0.0)
    for first in tqdm(range(0, steps["fastnn"], CHUNK), desc=f"{CHUNK} steps each"):
        for name, model in models.items():
            if first < steps[name]:
                begin = time.perf_counter()
                losses[name].append(train[name](model, x, y, CHUNK))
                seconds[name] += time.perf_counter() - begin
    curves = {name: torch.cat(parts) for name, parts in losses.items()}
    seconds = {name: seconds[name] * steps["fastnn"] / steps[name] for name in models}

    for name, model in models.items():
        if steps[name] == steps["fastnn"]:
            with torch.no_grad():
                error = (model(x) - y).abs().max().item()
            claim(f"largest error of the fit, {name}", error, at_most=3e-2)
    # Later the errors jump from one side of 0 to the other, and a rounding decides when.
    apart = (curves["fastnn"][:1000] - curves["torch"][:1000]).abs().max().item()
    claim("losses of the first 1,000 steps, difference to torch's", apart, expected=0.0, tolerance=1e-4)

    print(
        f"{steps['fastnn']:,} steps: torch {seconds['torch']:.2f} s"
        f"{' (20 times its first 5,000)' if args.small else ''}, fastnn {seconds['fastnn']:.2f} s, ",
        end="",
    )
    print(f"{seconds['torch'] / seconds['fastnn']:.1f} times as fast")
    draw(args.out / "two_neurons.png", x, y, models, curves, seconds, steps["fastnn"])
    metrics = {"claims": CLAIMS, "times": seconds, "data": "ten points of a parabola"}
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(f"picture and numbers are in {args.out}")
    if not all(entry["holds"] for entry in CLAIMS.values()):
        raise SystemExit("a claim does not hold")


if __name__ == "__main__":
    main()
