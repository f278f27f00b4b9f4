"""One network, eight times: from numpy by hand to a training step in one call.

A network of two layers, without biases, and the sum of squared errors:

    h = relu(x W1)        prediction = h W2        loss = sum((prediction - y)^2)

By the chain rule, from the back to the front:

    d_prediction = 2 (prediction - y)     dW2 = h^T d_prediction     dh = d_prediction W2^T
    dW1 = x^T (dh where h > 0, else 0)

and a step of gradient descent is W <- W - lr dW. Each rung of the ladder leaves a little more of that to the
library. All compute the same: first for one sample, to be checked with pencil and paper, then for a batch of
64 x 1000 inputs, 100 hidden units and 10 outputs, over 500 steps.

    python examples/ladder.py [--out DIR] [--small]
"""

import argparse
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import fastnn

plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}

CLAIMS: dict[str, dict] = {}
# A rung is a generator: each next() takes one training step and gives h, prediction, loss, dW1 and dW2.
Steps = Iterator[tuple[Any, Any, Any, Any, Any]]
squared_error = torch.nn.MSELoss(reduction="sum")


def by_hand(x: Any, y: Any, w1: Any, w2: Any, lr: float) -> Steps:
    while True:  # with numpy's arrays, and with tensors, which could also be on a GPU
        h = (x @ w1).clip(min=0)
        prediction = h @ w2
        loss = ((prediction - y) ** 2).sum()
        d_prediction = 2 * (prediction - y)
        dw2 = h.T @ d_prediction
        dh = d_prediction @ w2.T
        dw1 = x.T @ (dh * (h > 0))
        w1, w2 = w1 - lr * dw1, w2 - lr * dw2
        yield h, prediction, loss, dw1, dw2


def autograd(x: Tensor, y: Tensor, w1: Tensor, w2: Tensor, lr: float, relu: Any = torch.relu) -> Steps:
    w1, w2 = w1.clone().requires_grad_(), w2.clone().requires_grad_()  # leaves, whose gradients are wanted
    while True:
        h = relu(x @ w1)
        prediction = h @ w2
        loss = ((prediction - y) ** 2).sum()
        w1.grad = w2.grad = None  # otherwise gradients add up
        loss.backward()
        with torch.no_grad():  # the update is not to be remembered
            w1 -= lr * w1.grad
            w2 -= lr * w2.grad
        yield h, prediction, loss, w1.grad, w2.grad


class MyReLU(torch.autograd.Function):
    """An op of one's own, max(z, 0); its gradient is the incoming one where z > 0, else 0."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return grad * (z > 0)


def make_model(w1: Tensor, w2: Tensor) -> torch.nn.Sequential:
    first, second = (torch.nn.Linear(*w.shape, bias=False, dtype=w.dtype) for w in (w1, w2))
    with torch.no_grad():
        first.weight.copy_(w1.T)  # Linear keeps its weight as (outputs, inputs)
        second.weight.copy_(w2.T)
    return torch.nn.Sequential(first, torch.nn.ReLU(), second)


def torch_nn(x: Tensor, y: Tensor, w1: Tensor, w2: Tensor, lr: float) -> Steps:
    first, relu, second = model = make_model(w1, w2)
    while True:
        h = relu(first(x))
        prediction = second(h)
        loss = squared_error(prediction, y)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= lr * parameter.grad
        yield h, prediction, loss, first.weight.grad.T, second.weight.grad.T


def torch_optim(x: Tensor, y: Tensor, w1: Tensor, w2: Tensor, lr: float) -> Steps:
    first, relu, second = model = make_model(w1, w2)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    while True:
        h = relu(first(x))
        prediction = second(h)
        loss = squared_error(prediction, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield h, prediction, loss, first.weight.grad.T, second.weight.grad.T


def fastnn_ops(x: Tensor, y: Tensor, w1: Tensor, w2: Tensor, lr: float) -> Steps:
    first, _, second = model = make_model(w1, w2)
    optimizer = fastnn.optim.SGD(model.parameters(), lr=lr)
    while True:
        h = fastnn.functional.linear(x, first.weight, activation="relu")  # product and ReLU in one pass
        prediction = fastnn.functional.linear(h, second.weight)
        loss = squared_error(prediction, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield h, prediction, loss, first.weight.grad.T, second.weight.grad.T


def fastnn_step(x: Tensor, y: Tensor, w1: Tensor, w2: Tensor, lr: float) -> Steps:
    first, _, second = model = make_model(w1, w2)
    optimizer = fastnn.optim.SGD(model.parameters(), lr=lr)
    step = fastnn.TrainStep(model, squared_error, optimizer, keep_grad=True)
    while True:
        # h and prediction stay inside the call; the check by hand, whose lr is 0, asks the model for them.
        h, prediction = (model[:2](x), model(x)) if lr == 0 else (None, None)
        loss = step(x, y)
        yield h, prediction, loss, first.weight.grad.T, second.weight.grad.T


RUNGS = {
    "numpy by hand": lambda *data, lr: by_hand(*(tensor.numpy() for tensor in data), lr),
    "tensors by hand": by_hand,
    "autograd": autograd,
    "autograd.Function": partial(autograd, relu=MyReLU.apply),
    "torch.nn": torch_nn,
    "torch.optim": torch_optim,
    "fastnn, op by op": fastnn_ops,
    "fastnn.TrainStep": fastnn_step,
}
BY_HAND = {"h": [[0.4, 0.7]], "prediction": [[0.14, 0.25]], "loss": 3.8021}
BY_HAND |= {"dW1": [[-0.35, -1.394], [-0.7, -2.788]], "dW2": [[-0.688, -1.4], [-1.204, -2.45]]}


def claim(name: str, value: Any, expected: Any, tolerance: float) -> None:
    """Note that `value` is `expected`; where it is not, the program ends with an error."""
    value = torch.as_tensor(value).tolist()
    holds = bool(np.abs(np.subtract(value, expected)).max() <= tolerance)
    CLAIMS[name] = {"value": value, "expected": expected, "tolerance": tolerance, "holds": holds}
    if not holds:
        print(f"DOES NOT HOLD: {name} is {value}, expected {expected} within {tolerance}")


def train(dtype: torch.dtype, steps: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Losses and seconds a step of each rung; they take turns, so that all meet the same machine."""
    torch.manual_seed(0)
    data = [torch.randn(size, dtype=dtype) for size in ((64, 1000), (64, 10), (1000, 100), (100, 10))]
    running = {rung: make(*data, lr=1e-6) for rung, make in RUNGS.items()}
    losses, seconds = ({rung: [] for rung in RUNGS} for _ in range(2))
    for _ in tqdm(range(steps // 20), desc=f"{dtype}, 20 steps each"):
        for rung, trained in running.items():
            start = time.perf_counter()
            losses[rung] += [next(trained)[2] for _ in range(20)]
            seconds[rung].append((time.perf_counter() - start) / 20)
    curves = {rung: torch.stack([torch.as_tensor(v).detach() for v in losses[rung]]) for rung in RUNGS}
    return curves, {rung: float(np.median(seconds[rung])) for rung in RUNGS}


def draw(file: Path, losses: dict[str, Tensor], times: dict[str, float]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    figure.suptitle("One network on every rung of the ladder: 64 x 1000 x 100 x 10, squared error, SGD")
    for number, (rung, values) in enumerate(losses.items()):
        left.plot(values, label=rung, color=plt.cm.viridis(number / 8), linewidth=8 - number)
    left.set(title="All rungs have the same loss", xlabel="step", ylabel="loss", yscale="log")
    left.legend()
    colors = ["#0b6e99" if "fastnn" in rung else "#b9b9b9" for rung in times]
    bars = right.barh(list(times), [1e6 * t for t in times.values()], color=colors)
    right.bar_label(bars, fmt="%.0f", padding=4)
    right.set(title="Time of a step, float32", xlabel="microseconds (median)", xmargin=0.12)
    right.invert_yaxis()
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/ladder"), help="for the results")
    parser.add_argument("--small", action="store_true", help="fewer steps")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    print("x = [1, 2], y = [1, 2], W1 = W2 = [[0, .1], [.2, .3]], on every rung:")
    x, w = torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.tensor([[0.0, 0.1], [0.2, 0.3]]).double()
    for rung, make in RUNGS.items():
        for name, value in zip(BY_HAND, next(make(x, x, w, w, lr=0.0)), strict=True):
            claim(f"{rung}: {name}", value, BY_HAND[name], 1e-6)
    print("\n".join(f"  {name:10} = {expected}" for name, expected in BY_HAND.items()))

    steps = 100 if args.small else 500
    # In float64, for of a loss that falls by a factor of 10^14 float32 would only leave rounding errors.
    losses, _ = train(torch.float64, steps)
    for rung, values in losses.items():
        apart = (values / losses["numpy by hand"] - 1).abs().max()
        claim(f"{rung}: relative difference to numpy's losses", apart, 0.0, 1e-6)
    _, times = train(torch.float32, steps)
    print(f"64 x 1000 x 100 x 10: loss {values[0]:.3g}, after {steps} steps {values[-1]:.3g}; a step takes")
    print("\n".join(f"  {rung:18} {1e6 * seconds:7.0f} us" for rung, seconds in times.items()))
    print(f"TrainStep is {times['torch.optim'] / times['fastnn.TrainStep']:.1f} times as fast as torch.optim")

    draw(args.out / "ladder.png", losses, times)
    metrics = {"claims": CLAIMS, "times": times, "data": "random numbers, seed 0"}
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(f"picture and numbers are in {args.out}")
    if not all(entry["holds"] for entry in CLAIMS.values()):
        raise SystemExit("a claim does not hold")


if __name__ == "__main__":
    main()
