"""Three sizes of a batch and six optimizers, side by side on MNIST.

Each lowers the cross-entropy of a network 784-28-10 along its gradient g, from the same weights p:

    SGD       p -= lr g                                    of all images, of one, or of a mini-batch
    momentum  b = 0.9 b + g,          p -= lr b            rolls on
    Adagrad   s += g^2,               p -= lr g / sqrt(s)  a rate for each weight, which only falls
    RMSprop   s = 0.99 s + 0.01 g^2,  p -= lr g / sqrt(s)  a rate for each weight, which forgets
    Adam      momentum above, RMSprop below, both corrected for their start at zero
    AdamW     Adam, and p -= lr decay p besides

All steps are fastnn's: TrainStep.epoch takes an epoch of them in a few native calls. What to see: all images
at once give the smoothest curve and by far the slowest progress, one at a time the noisiest; the optimizers
all get there, each with the rate that suits it. Beside each stands torch's optimizer (fused where torch has
that) in the usual loop on the same batches: the same losses, in more time.

    python examples/optimizers.py [--out DIR] [--small] [--full]

MNIST comes from FASTNN_DATA_DIR, the cache or a download; else scikit-learn's 8x8 digits take its place.
"""

import argparse
import copy
import json
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from tqdm import tqdm

import fastnn
import fastnn.data

MINI = 64  # images in a mini-batch
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


class Run(NamedTuple):
    """One line of the table: an optimizer by name, its options, and images in a batch (None: all)."""

    name: str
    optimizer: str
    options: dict
    batch: int | None = MINI


BATCHES = [
    Run("full batch", "SGD", {"lr": 0.1}, batch=None),
    Run("one sample", "SGD", {"lr": 0.002}, batch=1),
    Run("mini-batch", "SGD", {"lr": 0.05}),
]
OPTIMIZERS = [
    Run("SGD", "SGD", {"lr": 0.05}),
    Run("momentum", "SGD", {"lr": 0.01, "momentum": 0.9}),
    Run("Adagrad", "Adagrad", {"lr": 0.02}),
    Run("RMSprop", "RMSprop", {"lr": 1e-3}),
    Run("Adam", "Adam", {"lr": 1e-3}),
    Run("AdamW", "AdamW", {"lr": 1e-3, "weight_decay": 0.01}),
]


class Result(NamedTuple):
    """What a run gave, and what torch gave beside it."""

    losses: Tensor  # of each step
    accuracy: list[float]
    seconds: float
    us: float  # microseconds of a step
    torch_us: float
    difference: float  # of the losses from torch's, at most


class Problem(NamedTuple):
    """The network to start from, bytes to train it on, floats to test it with."""

    net: nn.Module
    images: Tensor  # uint8
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    scale: dict  # TrainStep makes (x / 255 - mean) / std of bytes


def make_step(problem: Problem, run: Run) -> fastnn.TrainStep:
    """A fresh copy of the network with fastnn's optimizer of this run."""
    model = copy.deepcopy(problem.net)
    optimizer = getattr(fastnn.optim, run.optimizer)(model.parameters(), **run.options)
    return fastnn.TrainStep(model, nn.CrossEntropyLoss(), optimizer, **problem.scale)


def train(problem: Problem, run: Run, epochs: int) -> Result:
    """Some epochs by fastnn, tested 12 times; then the first steps once more, beside torch's."""
    step = make_step(problem, run)
    batch = run.batch or len(problem.images)
    rows = torch.cat([torch.randperm(len(problem.images)) for _ in range(epochs)])
    losses, accuracy, seconds = [], [], 0.0
    for part in rows.split(batch * math.ceil(len(rows) / batch / 12)):
        start = time.perf_counter()
        losses.append(step.epoch(problem.images, problem.labels, batch, part))
        seconds += time.perf_counter() - start
        with torch.no_grad():
            right = step.model(problem.test_images).argmax(1) == problem.test_labels
        accuracy.append(100 * float(right.float().mean()))
    return Result(torch.cat(losses), accuracy, seconds, *compare(problem, run))


def compare(problem: Problem, run: Run) -> tuple[float, float, float]:
    """Microseconds of a step of fastnn and of torch, in turn, and how far their first losses are apart."""
    batch = run.batch or len(problem.images)
    steps = 60 if run.batch else 2
    step = make_step(problem, run)
    model, loss_fn = copy.deepcopy(problem.net), nn.CrossEntropyLoss()
    fused = {} if run.optimizer == "RMSprop" else {"fused": True}  # torch has no fused RMSprop
    optimizer = getattr(torch.optim, run.optimizer)(model.parameters(), **run.options, **fused)
    floats = (problem.images.float() / 255 - problem.scale["mean"]) / problem.scale["std"]
    ours, theirs, difference = [], [], 0.0
    for _ in range(5):
        rows = torch.randperm(len(floats)).repeat(steps)[: steps * batch]
        start = time.perf_counter()
        fastnn_losses = step.epoch(problem.images, problem.labels, batch, rows)
        ours.append(time.perf_counter() - start)
        torch_losses = []
        for some in rows.split(batch):
            start = time.perf_counter()
            optimizer.zero_grad()
            loss = loss_fn(model(floats[some]), problem.labels[some])
            loss.backward()
            optimizer.step()
            torch_losses.append(loss.detach())
            theirs.append(time.perf_counter() - start)
        if len(ours) == 1:  # later on, rounding errors have grown: training is chaotic
            difference = float((fastnn_losses - torch.stack(torch_losses)).abs().max())
    return 1e6 * min(ours) / steps, 1e6 * min(theirs), difference  # of torch the quickest step


def main() -> int:
    parser = argparse.ArgumentParser(description="Three sizes of a batch and six optimizers on MNIST.")
    parser.add_argument("--out", type=Path, default=Path("runs/optimizers"))
    parser.add_argument("--small", action="store_true", help="few images and epochs")
    parser.add_argument("--full", action="store_true", help="10 epochs instead of 3")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    data = fastnn.data.load(None, print).first(6000 if args.small else None)
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)  # uint8, int64
    test_images = (torch.from_numpy(data.test_images) - data.mean) / data.std
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(data.inputs, 28), nn.ReLU(), nn.Linear(28, 10))
    scale = {"mean": data.mean / 255, "std": data.std / 255}
    problem = Problem(net, images, labels, test_images, torch.from_numpy(data.test_labels), scale)
    epochs = 10 if args.full or data.name != "mnist" else 2 if args.small else 3
    results = {}
    for run in tqdm(BATCHES + OPTIMIZERS, unit="run", disable=None):
        # All images at once are one step an epoch, so that run takes more epochs; single images need one.
        results[run.name] = train(problem, run, {None: 36, 1: 1}.get(run.batch, epochs))
    draw(args.out / "optimizers.png", data.title, results)
    claims, times = {}, {}
    whole = data.name == "mnist" and not args.small
    print(f"{data.title}, {len(images)} images")
    print(f"{'':12} steps  seconds  accuracy  us a step  torch's  speed-up")
    for name, r in results.items():
        row = {"seconds": r.seconds, "us a step": r.us, "torch's": r.torch_us, "speed-up": r.torch_us / r.us}
        print(f"{name:12}{len(r.losses):6} {r.seconds:8.2f} {r.accuracy[-1]:8.2f}%", end="")
        print(f"{r.us:11.0f} {r.torch_us:8.0f} {row['speed-up']:9.1f}")
        times[name] = row
        least = 70.0 if not whole else 80.0 if name == "full batch" else 93.0
        claims[f"{name}: accuracy, %"] = claim(r.accuracy[-1], at_least=least)
        claims[f"{name}: loss, largest difference from torch's"] = claim(r.difference, at_most=1e-3)
    ahead = results["mini-batch"].accuracy[-1] - results["full batch"].accuracy[-1]
    claims["mini-batch ahead of full batch, points"] = claim(ahead, at_least=0.0)
    metrics = {"claims": claims, "times": times, "data": data.title}
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    for name, made in claims.items():
        print(f"{'ok  ' if made['holds'] else 'FAIL'} {name}: {made['value']:.4g}")
    return 0 if all(made["holds"] for made in claims.values()) else 1


def claim(value: float, **limit: float) -> dict:
    """A number, what it must be, and whether it is."""
    low, high = limit.get("at_least", value), limit.get("at_most", value)
    return {"value": value, **limit, "holds": low <= value <= high}


def draw(path: Path, title: str, results: dict[str, Result]) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained", width_ratios=(1, 1, 1.1))
    figure.suptitle(f"{title}: 28 hidden units, trained by fastnn (speed-up: of a step, over torch)")
    for (curves, tests, table), runs in zip(axes, (BATCHES, OPTIMIZERS), strict=True):
        cells = []
        for run in runs:
            r = results[run.name]
            smooth = r.losses.unfold(0, max(1, len(r.losses) // 40), 1).mean(1)
            # Steps of different sizes are compared by their time, else by their number.
            end = r.seconds if runs is BATCHES else len(r.losses)
            curves.plot(torch.linspace(0, end, len(smooth) + 1)[1:], smooth, label=run.name)
            tests.plot(torch.linspace(0, end, len(r.accuracy) + 1)[1:], r.accuracy, "o-", markersize=3)
            speed_up = f"{r.torch_us / r.us:.1f}"
            cells.append([run.name, len(r.losses), f"{r.seconds:.1f}", f"{r.accuracy[-1]:.1f}%", speed_up])
        curves.set(title="SGD, by images in a batch" if runs is BATCHES else f"Optimizers, batches of {MINI}")
        curves.set(ylabel="training loss", yscale="log")
        curves.legend()
        tests.set(title="Test accuracy", ylabel="%")
        for axis in (curves, tests):
            axis.set_xlabel("seconds" if runs is BATCHES else "step")
            axis.set_xscale("log" if runs is BATCHES else "linear")
        table.set_axis_off()
        layout = {"loc": "center", "edges": "horizontal", "colWidths": (0.24, 0.18, 0.18, 0.2, 0.2)}
        drawn = table.table(cells, colLabels=["", "steps", "seconds", "accuracy", "speed-up"], **layout)
        drawn.auto_set_font_size(False)
        drawn.scale(1, 1.8)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    sys.exit(main())
