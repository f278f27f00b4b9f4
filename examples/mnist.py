"""The classic MNIST program as everybody writes it, and the same program with fastnn.

A network 784-28-10 reads a handwritten digit x of 784 pixels. With W1 (28, 784) and W2 (10, 28) it says

    h = relu(W1 x + b1),   log p = log_softmax(W2 h + b2),   loss = -mean(log p[label])

and Adam lowers this loss, the negative log-likelihood, 64 images at a time. Four programs take the same steps
on the same batches:

    torch          Dataset, DataLoader, zero_grad, forward, loss, backward, step: the classic
    fastnn         the same Dataset and DataLoader; a step is one call of fastnn.TrainStep
    torch, memory  without the loader: all images are one tensor, a batch is images[rows]
    fastnn, epoch  without loader and loop: TrainStep.epoch gathers the batches and takes all steps

What to see: four loss curves on top of each other, the same accuracy, and where the time goes. The loader
costs more than the network, so the last program gains most.

    python examples/mnist.py [--out DIR] [--small]

MNIST comes from FASTNN_DATA_DIR, the cache or a download; else scikit-learn's 8x8 digits take its place.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import fastnn
import fastnn.data

BATCH, LR = 64, 1e-3
COLORS = {"torch": "#d9730d", "fastnn": "#0b6e99", "torch, memory": "#e8b27d", "fastnn, epoch": "#6fb1cc"}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


class Digits(Dataset):
    """Images as the network takes them: one at a time, as floats, normalised."""

    def __init__(self, images: Tensor, labels: Tensor, mean: float, std: float) -> None:
        self.images, self.labels, self.mean, self.std = images, labels, mean, std

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return (self.images[index].float() - self.mean) / self.std, int(self.labels[index])


class Net(nn.Module):
    """Two layers; the output is the logarithm of each digit's probability."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(pixels, 28)
        self.fc2 = nn.Linear(28, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, pixels) to (batch, 10)."""
        x = F.relu(self.fc1(x))
        return F.log_softmax(self.fc2(x), dim=1)


def train_torch(model: Net, optimizer: torch.optim.Optimizer, batches: Iterable) -> list[float]:
    """One epoch of the classic loop; the loss of each step."""
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = F.nll_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_fastnn(step: fastnn.TrainStep, batches: Iterable) -> list[float]:
    """The same with fastnn."""
    return [step(x, y).item() for x, y in batches]


def evaluate(model: Net, dataset: Digits) -> float:
    """Accuracy in percent."""
    right = 0
    with torch.no_grad():
        for x, y in DataLoader(dataset, batch_size=1000):
            right += int((model(x).argmax(1) == y).sum())
    return 100 * right / len(dataset)


def main() -> int:
    parser = argparse.ArgumentParser(description="The classic MNIST program, and the same with fastnn.")
    parser.add_argument("--out", type=Path, default=Path("runs/mnist"))
    parser.add_argument("--small", action="store_true", help="few images, one epoch")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    data = fastnn.data.load(None, print).first(6000 if args.small else None)
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)  # uint8, int64
    test_images, test_labels = torch.from_numpy(data.test_images), torch.from_numpy(data.test_labels)
    train_set = Digits(images, labels, data.mean, data.std)
    test_set = Digits(test_images, test_labels, data.mean, data.std)
    epochs = 20 if data.name != "mnist" else 1 if args.small else 4

    # Four copies of one network, each with an optimizer of its own.
    torch.manual_seed(0)
    net = Net(data.inputs)
    models = {name: copy.deepcopy(net) for name in COLORS}
    optimizers, steps = {}, {}
    for name, model in models.items():
        if name.startswith("torch"):
            optimizers[name] = torch.optim.Adam(model.parameters(), lr=LR)
        else:
            # Bytes become (x / 255 - mean) / std on the way; floats are taken as they are.
            adam = fastnn.optim.Adam(model.parameters(), lr=LR)
            scale = {"mean": data.mean / 255, "std": data.std / 255}
            steps[name] = fastnn.TrainStep(model, nn.NLLLoss(), adam, **scale)
    normalised = (images.float() - data.mean) / data.std

    def take_epoch(name: str, order: Tensor) -> list[float]:
        """One epoch of the program called `name`, on the images in this order."""
        loader = DataLoader(train_set, batch_size=BATCH, sampler=order.tolist())
        in_memory = ((normalised[rows], labels[rows]) for rows in order.split(BATCH))
        if name == "torch":
            return train_torch(models[name], optimizers[name], loader)
        if name == "fastnn":
            return train_fastnn(steps[name], loader)
        if name == "torch, memory":
            return train_torch(models[name], optimizers[name], in_memory)
        return steps[name].epoch(images, labels, BATCH, order).tolist()

    losses, seconds = {name: [] for name in COLORS}, dict.fromkeys(COLORS, 0.0)  # seconds of one epoch
    with tqdm(total=epochs * len(COLORS), unit="epoch", disable=None) as progress:
        for _ in range(epochs):
            order = torch.randperm(len(images))  # the same batches for all four
            for name in COLORS:  # in turn, so that a busy machine slows all of them alike
                start = time.perf_counter()
                losses[name] += take_epoch(name, order)
                seconds[name] += (time.perf_counter() - start) / epochs
                progress.update()
    accuracy = {name: evaluate(model, test_set) for name, model in models.items()}

    # Save what fastnn has trained; a network that knows nothing of fastnn loads it.
    torch.save(models["fastnn"].state_dict(), args.out / "mnist.pt")
    net.load_state_dict(torch.load(args.out / "mnist.pt"))

    gap = {name: torch.tensor(losses[name]) - torch.tensor(losses["torch"]) for name in COLORS}
    least = 95.5 if data.name == "mnist" and not args.small else 80.0
    points = max(abs(value - accuracy["torch"]) for value in accuracy.values())
    first = max(float(difference[:50].abs().max()) for difference in gap.values())
    mean = max(float(difference.mean().abs()) for difference in gap.values())
    loaded = claim(evaluate(net, test_set), expected=accuracy["fastnn"], tolerance=0.0)
    claims = {
        "accuracy of torch, %": claim(accuracy["torch"], at_least=least),
        "accuracy of fastnn, %": claim(accuracy["fastnn"], at_least=least),
        "accuracy of fastnn's epoch, %": claim(accuracy["fastnn, epoch"], at_least=least),
        "accuracy, largest difference from torch's, points": claim(points, at_most=1.0),
        "loss of the first 50 steps, largest difference from torch's": claim(first, at_most=1e-4),
        "mean loss, largest difference from torch's": claim(mean, at_most=0.01),
        "accuracy after saving and loading, %": loaded,
    }
    times = {f"{name}, seconds an epoch": value for name, value in seconds.items()}
    times["speed-up with the loader"] = seconds["torch"] / seconds["fastnn"]
    times["speed-up without the loader"] = seconds["torch, memory"] / seconds["fastnn, epoch"]
    times["speed-up of epoch over the classic"] = seconds["torch"] / seconds["fastnn, epoch"]
    draw(args.out / "mnist.png", f"{data.title}: {data.inputs}-28-10", losses, seconds, accuracy)
    metrics = {"claims": claims, "times": times, "data": data.title}
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")

    print(fastnn.explain(steps["fastnn"], normalised[:BATCH], labels[:BATCH]), "\n")  # what runs natively?
    for name in COLORS:
        print(f"{name:14} {seconds[name]:7.2f} s an epoch   test accuracy {accuracy[name]:.2f}%")
    for name, made in claims.items():
        print(f"{'ok  ' if made['holds'] else 'FAIL'} {name}: {made['value']:.4g}")
    return 0 if all(made["holds"] for made in claims.values()) else 1


def claim(value: float, **limit: float) -> dict:
    """A number, what it must be, and whether it is."""
    low = limit.get("at_least", limit.get("expected", value) - limit.get("tolerance", 0.0))
    high = limit.get("at_most", limit.get("expected", value) + limit.get("tolerance", 0.0))
    return {"value": value, **limit, "holds": low <= value <= high}


def draw(path: Path, title: str, losses: dict, seconds: dict, accuracy: dict) -> None:
    figure, (curves, bars) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    window = max(1, len(losses["torch"]) // 50)
    for width, (name, values) in zip((9, 6, 3.5, 1.5), losses.items(), strict=True):
        smooth = torch.tensor(values).unfold(0, window, 1).mean(1)
        curves.plot(range(window, len(values) + 1), smooth, label=name, color=COLORS[name], linewidth=width)
    curves.set(title="Four programs, one curve", xlabel="step", ylabel=f"loss (mean of {window} steps)")
    curves.set(yscale="log")
    curves.legend()
    drawn = bars.barh(list(seconds), list(seconds.values()), color=list(COLORS.values()))
    bars.bar_label(drawn, [f" {value:.2f} s, {accuracy[name]:.2f}%" for name, value in seconds.items()])
    bars.invert_yaxis()
    bars.margins(x=0.3)
    bars.set(title="Time of an epoch, and test accuracy", xlabel="seconds")
    figure.suptitle(f"{title}, batch {BATCH}, Adam")
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    sys.exit(main())
