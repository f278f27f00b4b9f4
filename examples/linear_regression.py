"""Linear regression, four ways: a straight line through points, by gradient descent.

    prediction = w x + b        loss = mean((prediction - y)^2)
    dloss/dw = 2 mean((prediction - y) x)        dloss/db = 2 mean(prediction - y)

The points lie on y = 3x + 0.8, and, with some noise, around y = 10x + 3. The first two ways update the
parameters by hand, hidden from autograd by `.data` or by `no_grad`; the third has torch's module, loss and
optimizer; the fourth takes each step in one call of fastnn. Beside them stands the closed form, which solves
(X^T X) (w, b) = X^T y for X = (x, 1).

    python examples/linear_regression.py [--out DIR] [--small]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor
from tqdm import tqdm

import fastnn

matplotlib.use("agg")
import matplotlib.pyplot as plt

LR = 0.2
COLORS = {"by hand, .data": "#b9b9b9", "by hand, no_grad": "#8a8a8a", "torch": "#d9730d", "fastnn": "#0b6e99"}
CLAIMS: dict[str, dict[str, Any]] = {}

# What a way of training gives: w, b and the loss of each step.
Trained = tuple[float, float, Tensor]


def claim(name: str, value: list[float], expected: list[float], tolerance: float) -> None:
    """Note that `value` is `expected`; where it is not, the program ends with an error."""
    holds = all(abs(v - e) <= tolerance for v, e in zip(value, expected, strict=True))
    CLAIMS[name] = {"value": value, "expected": expected, "tolerance": tolerance, "holds": holds}
    print(f"{'ok  ' if holds else 'FAIL'} {name}: {[round(v, 5) for v in value]}", end="")
    print(f", expected {[round(e, 5) for e in expected]} within {tolerance}")


def by_data(x: Tensor, y: Tensor, steps: int) -> Trained:
    """`.data` is the tensor without its history: what happens to it, autograd does not see."""
    w, b = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    losses = []
    for _ in range(steps):
        loss = ((x * w + b - y) ** 2).mean()
        loss.backward()
        w.data -= LR * w.grad.data
        b.data -= LR * b.grad.data
        w.grad.zero_()  # gradients add up until they are cleared
        b.grad.zero_()
        losses.append(loss.detach())
    return w.item(), b.item(), torch.stack(losses)


def by_no_grad(x: Tensor, y: Tensor, steps: int) -> Trained:
    """In `no_grad` nothing is remembered: what one writes today instead of `.data`."""
    w, b = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    losses = []
    for _ in range(steps):
        loss = ((x * w + b - y) ** 2).mean()
        loss.backward()
        with torch.no_grad():
            w -= LR * w.grad
            b -= LR * b.grad
        w.grad = b.grad = None
        losses.append(loss.detach())
    return w.item(), b.item(), torch.stack(losses)


def line_from_zero() -> torch.nn.Linear:
    """The module of a straight line, w = b = 0."""
    model = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    return model


def by_torch(x: Tensor, y: Tensor, steps: int) -> Trained:
    """Module, loss and optimizer."""
    model = line_from_zero()
    loss_fn = torch.nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return model.weight.item(), model.bias.item(), torch.stack(losses)


def by_fastnn(x: Tensor, y: Tensor, steps: int) -> Trained:
    """The same three, and a step in one call: `step(x, y)`."""
    model = line_from_zero()
    loss_fn = torch.nn.MSELoss()
    optimizer = fastnn.optim.SGD(model.parameters(), lr=LR)
    step = fastnn.TrainStep(model, loss_fn, optimizer)
    losses = [step(x, y) for _ in range(steps)]
    return model.weight.item(), model.bias.item(), torch.stack(losses)


WAYS: dict[str, Callable[[Tensor, Tensor, int], Trained]] = {
    "by hand, .data": by_data,
    "by hand, no_grad": by_no_grad,
    "torch": by_torch,
    "fastnn": by_fastnn,
}


def closed_form(x: Tensor, y: Tensor) -> list[float]:
    """The w and b of the least sum of squares."""
    columns = torch.cat([x, torch.ones_like(x)], dim=1).double()
    return torch.linalg.lstsq(columns, y.double()).solution.flatten().tolist()


def draw(file: Path, problems: dict[str, Any], times: dict[str, float]) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.8), layout="constrained", width_ratios=(1, 1, 1.1, 1))
    figure.suptitle("Linear regression by gradient descent")
    for axis, (title, (x, y, found, losses)) in zip(axes, problems.items(), strict=False):
        axis.plot(x[::4], y[::4], ".", color="#c9c9c9", label="the points")
        ends = torch.tensor([0.0, 1.0])
        w, b = found["fastnn"]
        axis.plot(ends, w * ends + b, color=COLORS["fastnn"], label=f"y = {w:.3f} x + {b:.3f}")
        axis.set(title=title, xlabel="x", ylabel="y")
        axis.legend(frameon=False)
        for number, (way, values) in enumerate(losses.items()):
            label = way if title.startswith("y = 3x") else None
            axes[2].plot(values, color=COLORS[way], linewidth=7 - 2 * number, label=label)
        axes[2].annotate(title, (len(values), 2 * values[-1]), ha="right", va="bottom", fontsize=8)
    axes[2].set(title="The loss: all ways alike", xlabel="step", ylabel="mean squared error", yscale="log")
    axes[2].legend(frameon=False, fontsize=8)
    micros = [1e6 * seconds for seconds in times.values()]
    bars = axes[3].barh(list(times), micros, color=list(COLORS.values()))
    axes[3].bar_label(bars, [f"{m:.0f}" for m in micros], padding=3)
    axes[3].set(title="Time of a step", xlabel="microseconds (median)", xlim=(0, 1.15 * max(micros)))
    axes[3].invert_yaxis()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/linear_regression"), help="for the results")
    parser.add_argument("--small", action="store_true", help="one round of measurement instead of five")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    x = torch.rand(2000, 1)
    lines = {"y = 3x + 0.8": (3.0, 0.8, 0.0), "y = 10x + 3, noise": (10.0, 3.0, 0.1)}
    problems, seconds = {}, {way: [] for way in WAYS}
    for _ in tqdm(range(1 if args.small else 5), desc="rounds"):
        for title, (slope, constant, noise) in lines.items():
            torch.manual_seed(1)
            y = slope * x + constant + noise * torch.randn(len(x), 1)
            found, losses = {}, {}
            for way, train in WAYS.items():  # they take turns, so that all meet the same machine
                begin = time.perf_counter()
                w, b, losses[way] = train(x, y, 500)
                seconds[way].append((time.perf_counter() - begin) / 500)
                found[way] = [w, b]
            problems[title] = x, y, found, losses
    times = {way: statistics.median(spent) for way, spent in seconds.items()}

    for title, (x, y, found, losses) in problems.items():
        best = closed_form(x, y)
        claim(f"{title}: closed form", best, list(lines[title][:2]), 1e-2)
        for way, parameters in found.items():
            claim(f"{title}: {way}", parameters, list(lines[title][:2]), 1e-2)
            claim(f"{title}: {way}, beside the closed form", parameters, best, 1e-3)
        apart = (losses["fastnn"] - losses["torch"]).abs().max().item()
        claim(f"{title}: largest difference of fastnn's losses to torch's", [apart], [0.0], 1e-4)
    print("a step takes " + ", ".join(f"{1e6 * t:.1f} us ({way})" for way, t in times.items()))
    print(f"fastnn is {times['torch'] / times['fastnn']:.1f} times as fast as torch")

    draw(args.out / "linear_regression.png", problems, times)
    metrics = {"claims": CLAIMS, "times": times, "data": "2000 points on each line, seed 0"}
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(f"picture and numbers are in {args.out}")
    if not all(entry["holds"] for entry in CLAIMS.values()):
        raise SystemExit("a claim does not hold")


if __name__ == "__main__":
    main()
