"""What a convolutional network sees: its activations, its filters, and where it looks.

A small CNN reads MNIST: three blocks of convolution, batch norm, ReLU; then the mean of each of the K feature
maps A_k over its Z positions (global average pooling), and one linear layer:

    score_c = sum_k W[c, k] (1/Z) sum_ij A_k[i, j] + b_c

Four looks inside:

    activations  the maps themselves, block by block
    filters      gradient ascent on the input: the picture that excites one map most
    CAM          sum_k W[c, k] A_k[i, j]: how much each position adds to the score of class c
    Grad-CAM     sum_k a_k A_k[i, j] with a_k = (1/Z) sum_ij d score_c / d A_k[i, j], for any layer

Here d score_c / d A_k[i, j] = W[c, k] / Z, so on the last block Grad-CAM is CAM / Z: their correlation must
be 1. On the block before no theory says so, and they differ.

The convolutions are torch's; linear layer, loss and Adam are fastnn's, which leaves a layer so small to
torch. Convolutions take nearly all of the time, so do not expect a speed-up here: the example shows that both
mix, and how.

    python examples/look_inside.py [--out DIR] [--small]

MNIST comes from FASTNN_DATA_DIR, the cache or a download; else scikit-learn's 8x8 digits take its place.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import fastnn
import fastnn.data

BATCH = 128


class Net(nn.Module):
    """Three blocks, global average pooling, a linear layer; `library` is fastnn or torch, for the latter."""

    def __init__(self, library: ModuleType) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for channels, maps, size, stride in ((1, 16, 5, 2), (16, 32, 3, 1), (32, 64, 3, 1)):
            convolution = nn.Conv2d(channels, maps, size, stride, padding=size // 2, bias=False)
            self.blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(maps), nn.ReLU()))
        self.classify = library.nn.Linear(64, 10)

    def activations(self, x: Tensor) -> list[Tensor]:
        """The maps of each block: (B, 16, H/2, W/2), (B, 32, H/2, W/2), (B, 64, H/4, W/4)."""
        first = self.blocks[0](x)
        second = self.blocks[1](first)
        return [first, second, self.blocks[2](F.max_pool2d(second, 2))]

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) to (B, 10)."""
        return self.classify(self.activations(x)[-1].mean((2, 3)))


def trainer(net: Net, library: ModuleType, steps: int) -> Callable[[Tensor, Tensor], float]:
    """Takes a step and gives its loss: the same lines for fastnn's parts and for torch's."""
    loss_fn, optimizer = library.nn.CrossEntropyLoss(), library.optim.Adam(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)

    def take_step(x: Tensor, y: Tensor) -> float:
        optimizer.zero_grad()
        loss = loss_fn(net(x), y)
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss.item()

    return take_step


def compare(net: Net, x: Tensor, y: Tensor, steps: int) -> tuple[dict[str, float], float]:
    """Times of a step with fastnn and with torch, in turn, and the largest difference of losses."""
    ours, theirs = copy.deepcopy(net), Net(torch)
    theirs.load_state_dict(net.state_dict())
    both = [trainer(ours, fastnn, 1000), trainer(theirs, torch, 1000)]
    ms, losses = ([], []), ([], [])
    for rows in torch.randperm(len(x))[: steps * BATCH].split(BATCH):
        for who, take_step in enumerate(both):
            start = time.perf_counter()
            losses[who].append(take_step(x[rows], y[rows]))
            ms[who].append(1e3 * (time.perf_counter() - start))
    difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
    our_ms, torch_ms = map(min, ms)
    times = {"a step with fastnn, ms": our_ms, "a step with torch, ms": torch_ms}
    return {**times, "speed-up": torch_ms / our_ms}, difference


def favourite_picture(net: Net, block: int, channel: int, size: int) -> Tensor:
    """Gradient ascent from faint noise: the input that excites one map most, (size, size)."""
    x = 0.1 * torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(channel))
    x.requires_grad_()
    for _ in range(40):
        excitement = net.activations(x)[block][0, channel].mean()
        (gradient,) = torch.autograd.grad(excitement, x)
        with torch.no_grad():
            x += 0.3 * gradient / (gradient.std() + 1e-8)
            x.lerp_(F.avg_pool2d(x, 3, stride=1, padding=1), 0.3)  # else noise of single pixels wins
            x.clamp_(-1, 3)
    return x.detach()[0, 0]


def cam(net: Net, x: Tensor, label: int) -> Tensor:
    """Class activation map (H/4, W/4) of x (1, 1, H, W)."""
    return torch.einsum("k,kij->ij", net.classify.weight[label], net.activations(x)[-1][0]).detach()


def grad_cam(net: Net, x: Tensor, label: int, block: int) -> Tensor:
    """The same by gradients, on the maps of any block."""
    maps = net.activations(x)
    score = net.classify(maps[-1].mean((2, 3)))[0, label]
    (gradient,) = torch.autograd.grad(score, maps[block])
    return torch.einsum("k,kij->ij", gradient[0].mean((1, 2)), maps[block][0]).detach()


def correlation(a: Tensor, b: Tensor) -> float:
    """Of all values, the smaller map enlarged."""
    size = max(a.shape, b.shape)
    both = [F.interpolate(m[None, None], size=size, mode="bilinear").flatten() for m in (a, b)]
    return float(torch.corrcoef(torch.stack(both))[0, 1])


def main() -> int:
    parser = argparse.ArgumentParser(description="What a convolutional network sees.")
    parser.add_argument("--out", type=Path, default=Path("runs/look_inside"))
    parser.add_argument("--small", action="store_true", help="few images")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    data = fastnn.data.load(None, print).first(6000 if args.small else None)
    pixels = (torch.from_numpy(images) for images in (data.train_images, data.test_images))
    x, test_x = ((p.view(-1, 1, data.height, data.width) - data.mean) / data.std for p in pixels)
    y, test_y = torch.from_numpy(data.train_labels), torch.from_numpy(data.test_labels)

    torch.manual_seed(0)
    net = Net(fastnn)
    times, difference = compare(net, x, y, 10)
    epochs = 20 if data.name != "mnist" else 2 if args.small else 3
    rows = torch.cat([torch.randperm(len(x)) for _ in range(epochs)]).split(BATCH)
    take_step = trainer(net, fastnn, len(rows))
    start = time.perf_counter()
    for some in tqdm(rows, unit="step", disable=None):
        take_step(x[some], y[some])
    times = {"training, seconds": time.perf_counter() - start, **times}
    net.eval()
    with torch.no_grad():
        predicted = torch.cat([net(some).argmax(1) for some in test_x.split(1000)])
    accuracy = 100 * float((predicted == test_y).float().mean())
    middle, last = [], []
    for image, label in zip(test_x[:50].split(1), test_y, strict=False):
        for block, values in ((1, middle), (2, last)):
            values.append(correlation(cam(net, image, label), grad_cam(net, image, label, block)))
    mean = sum(middle) / len(middle)
    least = 98.5 if data.name == "mnist" and not args.small else 80.0
    claims = {
        "test accuracy, %": claim(accuracy, at_least=least),
        "CAM and Grad-CAM on the last block, least correlation": claim(min(last), at_least=0.99),
        "CAM and Grad-CAM on the block before, mean correlation": claim(mean, at_most=0.99),
        "losses of ten steps, largest difference from torch's": claim(difference, at_most=1e-3),
    }
    draw(args.out / "look_inside.png", f"{data.title}, test accuracy {accuracy:.2f}%", net, test_x, test_y)
    metrics = {"claims": claims, "times": times, "data": data.title}
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    for name, value in times.items():
        print(f"{name}: {value:.3g}")
    for name, made in claims.items():
        print(f"{'ok  ' if made['holds'] else 'FAIL'} {name}: {made['value']:.4g}")
    return 0 if all(made["holds"] for made in claims.values()) else 1


def claim(value: float, **limit: float) -> dict:
    """A number, what it must be, and whether it is."""
    low, high = limit.get("at_least", value), limit.get("at_most", value)
    return {"value": value, **limit, "holds": low <= value <= high}


def tiles(maps: Tensor, columns: int) -> Tensor:
    """Maps (K, h, w), each scaled to 0 ... 1, side by side in rows as one picture."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    scaled = F.pad((maps - low) / (high - low + 1e-8), (0, 1, 0, 1), value=1.0)
    return torch.cat([torch.cat(list(row), dim=1) for row in scaled.split(columns)])


def show(axis: plt.Axes, title: str, picture: Tensor, cmap: str = "viridis") -> None:
    axis.imshow(picture, cmap=cmap)
    axis.set_title(title)
    axis.set_axis_off()


def draw(path: Path, title: str, net: Net, x: Tensor, y: Tensor) -> None:
    figure = plt.figure(figsize=(11, 9), layout="constrained")
    figure.suptitle(title)
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(1, 1.1, 1.6))
    size = x.shape[-1]
    first, *axes = top.subplots(1, 4)
    show(first, "input", x[0, 0], cmap="gray")
    with torch.no_grad():
        activations = net.activations(x[:1])
    for block, axis in enumerate(axes):
        show(axis, f"activations, block {block + 1}", tiles(activations[block][0, :16], 4))
    for block, axis in enumerate(middle.subplots(1, 3)):
        favourites = torch.stack([favourite_picture(net, block, channel, size) for channel in range(12)])
        show(axis, f"what excites 12 maps of block {block + 1} most", tiles(favourites, 6), cmap="gray")
    before, last = partial(grad_cam, block=1), partial(grad_cam, block=2)
    looks = {"CAM": cam, "Grad-CAM,\nlast block": last, "Grad-CAM,\nblock before": before}
    over = {"cmap": "inferno", "alpha": 0.6, "extent": (0, size, size, 0), "interpolation": "bilinear"}
    for row, (name, look) in zip(bottom.subplots(3, 8), looks.items(), strict=True):
        row[0].set_ylabel(name)
        for axis, image, label in zip(row, x[:8].split(1), y[:8].tolist(), strict=True):
            axis.imshow(image[0, 0], cmap="gray", extent=(0, size, size, 0))
            axis.imshow(look(net, image, label).relu(), **over)
            axis.set(xticks=[], yticks=[], title=f"a {label}" if look is cam else "")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    sys.exit(main())
