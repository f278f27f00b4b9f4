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

MNIST comes from FASTNN_DATA_DIR, the cache or a download; else scikit-learn's 8x8 digits take its place.
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import fastnn
import fastnn.data

LR, BATCH, HIDDEN = 0.1, 100, 50
COLORS = {"numpy by hand": "#8a8a8a", "torch": "#d9730d", "fastnn": "#0b6e99"}
CLAIMS: dict[str, dict] = {}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


def claim(name: str, value: float, **bound: float) -> None:
    """Note that `value` is `at_least` or `at_most` something; else the program ends with an error."""
    holds = value >= bound["at_least"] if "at_least" in bound else value <= bound["at_most"]
    CLAIMS[name] = {"value": value, **bound, "holds": bool(holds)}
    print(f"{'ok  ' if holds else 'FAIL'} {name}: {value:.4g}, {bound}")


class Affine:
    """z = x W + b, starting with the weights of a torch layer."""

    def __init__(self, layer: nn.Linear) -> None:
        self.w = layer.weight.detach().numpy().T.copy()
        self.b = layer.bias.detach().numpy().copy()

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return x @ self.w + self.b

    def backward(self, d: np.ndarray) -> np.ndarray:
        self.dw, self.db = self.x.T @ d, d.sum(axis=0)
        return d @ self.w.T


class ReLU:
    """z = max(x, 0)."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.positive = x > 0
        return np.maximum(x, 0)

    def backward(self, d: np.ndarray) -> np.ndarray:
        return d * self.positive


class Sigmoid:
    """z = 1 / (1 + e^-x)."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.z = 1 / (1 + np.exp(-x))
        return self.z

    def backward(self, d: np.ndarray) -> np.ndarray:
        return d * self.z * (1 - self.z)


class SoftmaxWithLoss:
    """The mean of -log softmax(x)[label]."""

    def forward(self, x: np.ndarray, label: np.ndarray) -> float:
        e = np.exp(x - x.max(axis=1, keepdims=True))  # the same quotient, and nothing overflows
        self.p, self.label = e / e.sum(axis=1, keepdims=True), label
        return -np.log(self.p[np.arange(len(label)), label] + 1e-30).mean()

    def backward(self) -> np.ndarray:
        one_hot = np.eye(self.p.shape[1], dtype=self.p.dtype)[self.label]
        return (self.p - one_hot) / len(self.p)


class Network:
    """Affine, an activation, Affine and the loss, starting with the weights of a torch model."""

    def __init__(self, model: nn.Sequential, activation: ReLU | Sigmoid) -> None:
        self.first, self.activation, self.second = Affine(model[0]), activation, Affine(model[2])
        self.loss = SoftmaxWithLoss()
        self.parameters = [self.first.w, self.first.b, self.second.w, self.second.b]

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.second.forward(self.activation.forward(self.first.forward(x)))

    def gradients(self, x: np.ndarray, label: np.ndarray) -> tuple[float, list[np.ndarray]]:
        loss = self.loss.forward(self.predict(x), label)
        self.first.backward(self.activation.backward(self.second.backward(self.loss.backward())))
        return loss, [self.first.dw, self.first.db, self.second.dw, self.second.db]


def make_model(pixels: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(pixels, HIDDEN), activation, nn.Linear(HIDDEN, 10))


def check_gradients(x: Tensor, label: Tensor) -> None:
    """By hand, by differences and by fastnn, in float64; the differences of 100 numbers of each parameter."""
    for activation, module in ((ReLU(), nn.ReLU()), (Sigmoid(), nn.Sigmoid())):
        model = make_model(x.shape[1], module).double()
        network = Network(model, activation)
        _, by_hand = network.gradients(x.numpy(), label.numpy())
        fastnn.nn.CrossEntropyLoss()(fastnn.convert(model)(x), label).backward()
        by_fastnn = [parameter.grad.numpy().T for parameter in model.parameters()]
        worst = max(np.abs(a - b).max() for a, b in zip(by_hand, by_fastnn, strict=True))
        name = f"{type(activation).__name__}: gradients by hand, largest difference to"
        claim(f"{name} fastnn's", float(worst), at_most=1e-12)

        worst, h = 0.0, 1e-5
        for parameter, gradient in zip(network.parameters, by_hand, strict=True):
            for i in np.random.default_rng(0).integers(parameter.size, size=100):
                kept, losses = parameter.flat[i], []
                for moved in (kept + h, kept - h):
                    parameter.flat[i] = moved
                    losses.append(network.loss.forward(network.predict(x.numpy()), label.numpy()))
                parameter.flat[i] = kept
                worst = max(worst, abs((losses[0] - losses[1]) / (2 * h) - gradient.flat[i]))
        claim(f"{name} numerical ones", float(worst), at_most=1e-7)


def train(x: Tensor, label: Tensor, test_x: Tensor, test_label: Tensor, epochs: int) -> tuple:
    """Accuracies after each epoch, losses of each step, and seconds a step, of the three in turn."""
    model, twin = (make_model(x.shape[1], nn.ReLU()) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    network = Network(model, ReLU())
    torch_loss, torch_sgd = nn.CrossEntropyLoss(), torch.optim.SGD(twin.parameters(), lr=LR)
    step = fastnn.TrainStep(model, fastnn.nn.CrossEntropyLoss(), fastnn.optim.SGD(model.parameters(), lr=LR))

    def numpy_step(rows: Tensor) -> float:
        loss, gradients = network.gradients(x[rows].numpy(), label[rows].numpy())
        for parameter, gradient in zip(network.parameters, gradients, strict=True):
            parameter -= LR * gradient
        return loss

    def torch_step(rows: Tensor) -> Tensor:
        torch_sgd.zero_grad()
        loss = torch_loss(twin(x[rows]), label[rows])
        loss.backward()
        torch_sgd.step()
        return loss.detach()

    ways = {  # how each takes the steps of an epoch, and how it predicts
        "numpy by hand": (lambda order: map(numpy_step, order.split(BATCH)), network.predict),
        "torch": (lambda order: map(torch_step, order.split(BATCH)), twin),
        "fastnn": (lambda order: step.epoch(x, label, BATCH, permutation=order), model),  # in one call
    }
    accuracies, losses, seconds = ({way: [] for way in ways} for _ in range(3))
    for _ in tqdm(range(epochs), desc="epochs"):
        order = torch.randperm(len(x))[: len(x) // BATCH * BATCH]
        for way, (take_steps, predict) in ways.items():
            begin = time.perf_counter()
            losses[way] += map(float, take_steps(order))
            seconds[way].append((time.perf_counter() - begin) / (len(order) // BATCH))
            predicted = predict(test_x.numpy() if way == "numpy by hand" else test_x).argmax(1)
            accuracies[way].append(float((torch.as_tensor(predicted) == test_label).double().mean()))
    return accuracies, losses, {way: float(np.median(seconds[way])) for way in ways}


def draw(file: Path, title: str, accuracies: dict, losses: dict, times: dict[str, float]) -> None:
    figure, (left, middle, bars) = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    figure.suptitle(title)
    for width, (way, color) in zip((7, 4.3, 1.6), COLORS.items(), strict=True):
        smooth = np.convolve(losses[way], np.ones(50) / 50, mode="valid")
        left.plot(np.arange(len(smooth)) + 50, smooth, color=color, linewidth=width, label=way)
        percent = 100 * np.array(accuracies[way])
        label = f"{way}: {percent[-1]:.2f}%"
        middle.plot(range(1, len(percent) + 1), percent, color=color, linewidth=width, label=label)
    left.set(title="Loss (mean of 50 steps)", xlabel="step", ylabel="cross-entropy", yscale="log")
    middle.set(title="Test accuracy", xlabel="epoch", ylabel="%")
    middle.xaxis.get_major_locator().set_params(integer=True)
    left.legend()
    middle.legend(loc="lower right")
    drawn = bars.bar(list(times), [1e6 * t for t in times.values()], color=list(COLORS.values()))
    bars.bar_label(drawn, fmt="%.0f", padding=2)
    bars.set(title="Time of a step, batch included", ylabel="microseconds", ymargin=0.1)
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/backprop_by_hand"), help="for the results")
    parser.add_argument("--small", action="store_true", help="2 epochs instead of 20")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    data = fastnn.data.load(None, print)
    print(f"data: {data.title}")
    torch.manual_seed(0)
    x, test_x = (torch.from_numpy(a).float() / data.white for a in (data.train_images, data.test_images))
    label, test_label = torch.from_numpy(data.train_labels), torch.from_numpy(data.test_labels)
    check_gradients(x[:20].double(), label[:20])

    real = data.name == "mnist"
    epochs = (2 if args.small else 20) if real else (40 if args.small else 200)  # the digits are few
    accuracies, losses, times = train(x, label, test_x, test_label, epochs)
    for way, values in accuracies.items():
        claim(f"{way}: test accuracy", values[-1], at_least=(0.92 if args.small else 0.97) if real else 0.85)
    for way in ("numpy by hand", "torch"):
        apart = float(np.abs(np.subtract(losses["fastnn"][:100], losses[way][:100])).max())
        claim(f"fastnn: losses of the first 100 steps, largest difference to {way}", apart, at_most=1e-4)
        apart = abs(accuracies["fastnn"][-1] - accuracies[way][-1])
        claim(f"fastnn: test accuracy, difference to {way}", apart, at_most=0.005)
    print("a step takes " + ", ".join(f"{1e6 * t:.0f} us ({way})" for way, t in times.items()))
    print(f"fastnn is {times['torch'] / times['fastnn']:.1f} times as fast as torch")

    title = f"Backpropagation by hand: {data.title}, {data.inputs}-{HIDDEN}-10"
    draw(args.out / "backprop_by_hand.png", title, accuracies, losses, times)
    metrics = {"claims": CLAIMS, "times": times, "data": data.title}
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(f"picture and numbers are in {args.out}")
    if not all(entry["holds"] for entry in CLAIMS.values()):
        raise SystemExit("a claim does not hold")


if __name__ == "__main__":
    main()
