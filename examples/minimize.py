"""Five optimizers walk down the same curve.

    f(a) = a^6 + 2 a^4 + 3 a^2 + a + 1,    f'(a) = 6 a^5 + 8 a^3 + 6 a + 1,    minimum at a = -0.160994685...

All start at a = 2, where f is steep (f' = 269) and each has another way to deal with that:

    SGD       a <- a - lr g                                   with g = f'(a)
    momentum  b <- 0.9 b + g,           a <- a - lr b
    RMSprop   v <- 0.99 v + 0.01 g^2,   a <- a - lr g / sqrt(v)
    Adagrad   v <- v + g^2,             a <- a - lr g / sqrt(v)
    Adam      m, v running means of g and g^2,   a <- a - lr m / sqrt(v)    (corrected for their start)

They are fastnn's, which are torch's in all but the time a step takes.

    python examples/minimize.py [--out DIR] [--small]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from tqdm import tqdm

import fastnn

matplotlib.use("agg")
import matplotlib.pyplot as plt

STEPS, START, MINIMUM = 200, 2.0, -0.160994685
# The name of the class in torch.optim and in fastnn.optim, and its options.
OPTIMIZERS: dict[str, tuple[str, dict[str, float]]] = {
    "SGD": ("SGD", {"lr": 0.005}),
    "momentum": ("SGD", {"lr": 0.005, "momentum": 0.9}),
    "RMSprop": ("RMSprop", {"lr": 0.1}),
    "Adagrad": ("Adagrad", {"lr": 1.5}),
    "Adam": ("Adam", {"lr": 0.9}),
}
CLAIMS: dict[str, dict[str, Any]] = {}


def claim(name: str, value: float, expected: float, tolerance: float) -> None:
    """Note that `value` is `expected`; where it is not, the program ends with an error."""
    holds = abs(value - expected) <= tolerance
    CLAIMS[name] = {"value": value, "expected": expected, "tolerance": tolerance, "holds": holds}
    print(f"{'ok  ' if holds else 'FAIL'} {name}: {value:.9f}, expected {expected} within {tolerance}")


def f(a: Any) -> Any:
    return a**6 + 2 * a**4 + 3 * a**2 + a + 1


def walk(library: Any, name: str) -> tuple[list[float], list[float]]:
    """Where the optimizer of `library` (torch or fastnn) goes, and the seconds that each step took."""
    kind, options = OPTIMIZERS[name]
    a = torch.tensor(START, requires_grad=True)
    optimizer = getattr(library.optim, kind)([a], **options)
    path, seconds = [a.item()], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        f(a).backward()
        begin = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
        path.append(a.item())
    return path, seconds


def draw(file: Path, paths: dict[str, list[float]], times: dict[str, dict[str, float]]) -> None:
    figure, (curve, distance, bars) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    figure.suptitle("Minimizing $f(a) = a^6 + 2a^4 + 3a^2 + a + 1$ from a = 2")
    grid = np.linspace(-1.5, 2.05, 300)
    curve.plot(grid, f(grid), color="#c9c9c9", linewidth=4)
    for number, (name, path) in enumerate(paths.items()):
        color, lift = f"C{number}", 1.35**number  # one above the other, or they would hide each other
        curve.plot(path, f(np.array(path)) * lift, "o-", color=color, markersize=3, linewidth=0.8, label=name)
        distance.plot(np.abs(np.array(path) - MINIMUM), color=color, label=name)
    curve.set(title="The paths (shifted upwards one by one)", xlabel="a", ylabel="f(a)", yscale="log")
    distance.set(title="Distance to the minimum", xlabel="step", ylabel="|a - a*|", yscale="log")
    curve.legend(frameon=False)
    distance.legend(frameon=False, ncols=2)
    place = np.arange(len(paths))
    for number, (library, color) in enumerate((("torch", "#d9730d"), ("fastnn", "#0b6e99"))):
        micros = [1e6 * seconds for seconds in times[library].values()]
        drawn = bars.bar(place + 0.4 * number - 0.2, micros, 0.38, color=color, label=library)
        bars.bar_label(drawn, [f"{m:.0f}" for m in micros], padding=2, fontsize=8)
    bars.set(title="Time of optimizer.step()", ylabel="microseconds (median)")
    bars.margins(y=0.15)
    bars.set_xticks(place, list(paths), fontsize=8)
    bars.legend(frameon=False)
    for axis in (curve, distance, bars):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/minimize"), help="for the results")
    parser.add_argument("--small", action="store_true", help="one round of measurement instead of ten")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    paths: dict[str, dict[str, list[float]]] = {"torch": {}, "fastnn": {}}
    seconds: dict[str, dict[str, list[float]]] = {"torch": {}, "fastnn": {}}
    for _ in tqdm(range(1 if args.small else 10), desc="rounds"):
        for name in OPTIMIZERS:
            for library in (torch, fastnn):  # they take turns, so that both meet the same machine
                path, spent = walk(library, name)
                paths[library.__name__][name] = path
                seconds[library.__name__].setdefault(name, []).extend(spent)
    times = {
        library: {name: statistics.median(spent) for name, spent in of.items()}
        for library, of in seconds.items()
    }

    claim("Adam after 200 steps", paths["fastnn"]["Adam"][-1], -0.160924077, 1e-7)
    for name, path in paths["fastnn"].items():
        apart = max(abs(ours - theirs) for ours, theirs in zip(path, paths["torch"][name], strict=True))
        claim(f"{name}: ends at the minimum", path[-1], MINIMUM, 1e-2)
        claim(f"{name}: largest distance of its path to torch's", apart, 0.0, 1e-5)
    for name in OPTIMIZERS:
        theirs, ours = 1e6 * times["torch"][name], 1e6 * times["fastnn"][name]
        print(f"{name:9} {ours:5.1f} us a step, torch's {theirs:5.1f} us: {theirs / ours:.1f} times as fast")

    draw(args.out / "minimize.png", paths["fastnn"], times)
    metrics = {"claims": CLAIMS, "times": times, "data": "a polynomial"}
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(f"picture and numbers are in {args.out}")
    if not all(entry["holds"] for entry in CLAIMS.values()):
        raise SystemExit("a claim does not hold")


if __name__ == "__main__":
    main()
