"""Backpropagation by hand: a network of numpy classes learns to read digits.

Every layer can do two things: `forward` turns its input into its output, and `backward` turns the gradient of
the loss by its output, d, into that by its input, noting those of its parameters on the way:

    Affine             z = x W + b              dx = d W^T    dW = x^T d    db = sum over the batch of d
    ReLU               z = max(x, 0)            dx = d where x > 0, else 0
    Sigmoid            z = 1 / (1 + e^-x)       dx = d z (1 - z)
    SoftmaxWithLoss    mean(-log p[label]), p = softmax(x)       dx = (p - one_hot(label)) / batch

The gradients are checked against numerical ones, (loss(w + h) - loss(w - h)) / 2h, and against fastnn's. Then
784-50-10 is trained by hand, by torch and by fastnn: gradient descent, lr 0.1, batches of 100, same batches.

    python examples/backprop_by_hand.py [--out DIR] [--small]

MNIST comes from where fastnn finds it (FASTNN_DATA_DIR); else scikit-learn's 8x8 digits take its place.
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
from torch import Tensor
from tqdm import tqdm

import fastnn
import fastnn.data

matplotlib.use("agg")
import matplotlib.pyplot as plt

LR, BATCH, HIDDEN = 0.1, 100, 50
COLORS = {"numpy by hand": "#8a8a8a", "torch": "#d9730d", "fastnn": "#0b6e99"}
CLAIMS: dict[str, dict[str, Any]] = {}


def claim(name: str, value: float, **bound: float) -> None:
    """Note that `value` is `at_least` or `at_most` something; else the program ends with an error."""
    holds = value >= bound["at_least"] if "at_least" in bound else value <= bound["at_most"]
    CLAIMS[name] = {"value": value, **bound, "holds": bool(holds)}
    print(f"{'ok  ' if holds else 'FAIL'} {name}: {value:.4g}, {bound}")


class Affine:
    """z = x W + b."""

    def __init__(self, w: Any, b: Any) -> None:
        self.w, self.b = w, b

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.w + self.b

    def backward(self, d: Any) -> Any:
        self.dw, self.db = self.x.T @ d, d.sum(axis=0)
        return d @ self.w.T


class ReLU:
    """z = max(x, 0)."""

    def forward(self, x: Any) -> Any:
        self.positive = x > 0
        return np.maximum(x, 0)

    def backward(self, d: Any) -> Any:
        return d * self.positive


class Sigmoid:
    """z = 1 / (1 + e^-x)."""

    def forward(self, x: Any) -> Any:
        self.z = 1 / (1 + np.exp(-x))
        return self.z

    def backward(self, d: Any) -> Any:
        return d * self.z * (1 - self.z)


class SoftmaxWithLoss:
    """The mean of -log softmax(x)[label]."""

    def forward(self, x: Any, label: Any) -> Any:
        e = np.exp(x - x.max(axis=1, keepdims=True))  # the same quotient, and nothing overflows
        self.p, self.label = e / e.sum(axis=1, keepdims=True), label
        return -np.log(self.p[np.arange(len(label)), label] + 1e-30).mean()

    def backward(self) -> Any:
        d = self.p.copy()
        d[np.arange(len(d)), self.label] -= 1
        return d / len(d)


class Network:
    """Affine, an activation, Affine and the loss, with the weights of a torch model."""

    def __init__(self, model: torch.nn.Sequential, activation: ReLU | Sigmoid) -> None:
        first, _, second = model
        self.first, self.second = (
            Affine(layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy())
            for layer in (first, second)
        )
        self.activation, self.loss = activation, SoftmaxWithLoss()

    def predict(self, x: Any) -> Any:
        return self.second.forward(self.activation.forward(self.first.forward(x)))

    def gradients(self, x: Any, label: Any) -> tuple[Any, list[Any]]:
        """The loss and the gradients of w and b of the first layer and the second."""
        loss = self.loss.forward(self.predict(x), label)
        self.first.backward(self.activation.backward(self.second.backward(self.loss.backward())))
        return loss, [self.first.dw, self.first.db, self.second.dw, self.second.db]

    def step(self, x: Any, label: Any) -> Any:
        """One step of gradient descent."""
        loss, gradients = self.gradients(x, label)
        parameters = (self.first.w, self.first.b, self.second.w, self.second.b)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= LR * gradient
        return loss


def check_gradients(pixels: int, x: Tensor, label: Tensor) -> None:
    """By hand, by differences and by fastnn, in float64; the differences of 100 weights of each parameter."""
    for ours, theirs in ((ReLU(), torch.nn.ReLU()), (Sigmoid(), torch.nn.Sigmoid())):
        name = type(ours).__name__
        model = make_model(pixels, theirs).double()
        network = Network(model, ours)
        _, by_hand = network.gradients(x.numpy(), label.numpy())

        fastnn.nn.CrossEntropyLoss()(fastnn.convert(model)(x), label).backward()
        worst = max(
            np.abs(hand - p.grad.numpy().T).max() for hand, p in zip(by_hand, model.parameters(), strict=True)
        )
        claim(f"{name}: gradients by hand, largest difference to fastnn's", float(worst), at_most=1e-12)

        worst, h = 0.0, 1e-5
        parameters = (network.first.w, network.first.b, network.second.w, network.second.b)
        for parameter, hand in zip(parameters, by_hand, strict=True):
            flat, hand = parameter.reshape(-1), hand.reshape(-1)
            for i in np.random.default_rng(0).integers(flat.size, size=100):
                kept = flat[i]
                losses = []
                for moved in (kept + h, kept - h):
                    flat[i] = moved
                    losses.append(network.loss.forward(network.predict(x.numpy()), label.numpy()))
                flat[i] = kept
                worst = max(worst, abs((losses[0] - losses[1]) / (2 * h) - hand[i]))
        claim(f"{name}: gradients by hand, largest difference to numerical ones", float(worst), at_most=1e-7)


def make_model(pixels: int, activation: torch.nn.Module) -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(pixels, HIDDEN), activation, torch.nn.Linear(HIDDEN, 10))


def train(data: dict[str, Tensor], epochs: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    """Accuracies after each epoch, losses of each step, and seconds a step, of the three in turn."""
    x, label = data["train_x"], data["train_label"]
    model = make_model(x.shape[1], torch.nn.ReLU())
    network = Network(model, ReLU())
    twin = make_model(x.shape[1], torch.nn.ReLU())
    twin.load_state_dict(model.state_dict())
    torch_loss, torch_sgd = torch.nn.CrossEntropyLoss(), torch.optim.SGD(twin.parameters(), lr=LR)
    step = fastnn.TrainStep(model, fastnn.nn.CrossEntropyLoss(), fastnn.optim.SGD(model.parameters(), lr=LR))

    def by_hand(order: Tensor) -> list[float]:
        images, labels = x.numpy(), label.numpy()
        return [network.step(images[rows], labels[rows]) for rows in np.split(order.numpy(), steps)]

    def by_torch(order: Tensor) -> list[Tensor]:
        losses = []
        for rows in order.split(BATCH):
            torch_sgd.zero_grad()
            loss = torch_loss(twin(x[rows]), label[rows])
            loss.backward()
            torch_sgd.step()
            losses.append(loss.detach())
        return losses

    def by_fastnn(order: Tensor) -> Tensor:  # the whole epoch in one call
        return step.epoch(x, label, BATCH, permutation=order)

    def right(predict: Any) -> float:
        with torch.no_grad():
            return float(
                (torch.as_tensor(predict(data["test_x"])).argmax(1) == data["test_label"]).double().mean()
            )

    ways = {
        "numpy by hand": (by_hand, lambda images: network.predict(images.numpy())),
        "torch": (by_torch, twin),
        "fastnn": (by_fastnn, model),
    }
    steps = len(x) // BATCH
    accuracies: dict[str, list[float]] = {way: [] for way in ways}
    losses: dict[str, list[float]] = {way: [] for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in tqdm(range(epochs), desc="epochs"):
        order = torch.randperm(len(x))[: steps * BATCH]
        for way, (run, predict) in ways.items():
            begin = time.perf_counter()
            values = run(order)
            seconds[way].append((time.perf_counter() - begin) / steps)
            losses[way] += [float(value) for value in values]
            accuracies[way].append(right(predict))
    return accuracies, losses, {way: statistics.median(seconds[way]) for way in ways}


def draw(file: Path, title: str, accuracies: Any, losses: Any, times: dict[str, float]) -> None:
    figure, (left, middle, bars) = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    figure.suptitle(title)
    for number, (way, color) in enumerate(COLORS.items()):
        width = 7 - 2.7 * number
        smooth = np.convolve(losses[way], np.ones(50) / 50, mode="valid")
        left.plot(np.arange(len(smooth)) + 50, smooth, color=color, linewidth=width, label=way)
        percent = [100 * a for a in accuracies[way]]
        label = f"{way}: {percent[-1]:.2f}%"
        middle.plot(range(1, len(percent) + 1), percent, color=color, linewidth=width, label=label)
    left.set(title="Loss (mean of 50 steps)", xlabel="step", ylabel="cross-entropy", yscale="log")
    middle.set(title="Test accuracy", xlabel="epoch", ylabel="%")
    micros = [1e6 * seconds for seconds in times.values()]
    drawn = bars.bar(list(times), micros, color=list(COLORS.values()))
    bars.bar_label(drawn, [f"{m:.0f}" for m in micros], padding=2)
    bars.set(title="Time of a step, batch included", ylabel="microseconds", ylim=(0, 1.1 * max(micros)))
    middle.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False)
    middle.legend(frameon=False, loc="lower right")
    for axis in (left, middle, bars):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/backprop_by_hand"), help="for the results")
    parser.add_argument("--small", action="store_true", help="2 epochs instead of 20")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    found = fastnn.data.load(None, print)
    print(f"data: {found.title}")
    torch.manual_seed(0)
    data = {
        "train_x": torch.from_numpy(found.train_images).float() / found.white,
        "train_label": torch.from_numpy(found.train_labels),
        "test_x": torch.from_numpy(found.test_images).float() / found.white,
        "test_label": torch.from_numpy(found.test_labels),
    }
    check_gradients(found.inputs, data["train_x"][:20].double(), data["train_label"][:20])

    real = found.name == "mnist"
    epochs = (2 if args.small else 20) if real else (40 if args.small else 200)  # the digits are few
    accuracies, losses, times = train(data, epochs)
    for way, values in accuracies.items():
        claim(f"{way}: test accuracy", values[-1], at_least=(0.92 if args.small else 0.97) if real else 0.85)
    for way in ("numpy by hand", "torch"):
        apart = float(np.abs(np.subtract(losses["fastnn"][:100], losses[way][:100])).max())
        claim(f"fastnn: losses of the first 100 steps, largest difference to {way}", apart, at_most=1e-4)
        claim(
            f"fastnn: test accuracy, difference to {way}",
            abs(accuracies["fastnn"][-1] - accuracies[way][-1]),
            at_most=0.005,
        )
    print("a step takes " + ", ".join(f"{1e6 * t:.0f} us ({way})" for way, t in times.items()))
    print(f"fastnn is {times['torch'] / times['fastnn']:.1f} times as fast as torch")

    title = f"Backpropagation by hand: {found.title}, {found.inputs}-{HIDDEN}-10"
    draw(args.out / "backprop_by_hand.png", title, accuracies, losses, times)
    metrics = {"claims": CLAIMS, "times": times, "data": found.title}
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(f"picture and numbers are in {args.out}")
    if not all(entry["holds"] for entry in CLAIMS.values()):
        raise SystemExit("a claim does not hold")


if __name__ == "__main__":
    main()
