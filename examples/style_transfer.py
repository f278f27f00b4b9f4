"""One photograph painted in the style of another (Gatys et al., A Neural Algorithm of Artistic Style).

The features F_l (C, L) of a picture are what layer l of a VGG19 network makes of it: C maps of L positions.
The content of a picture is its features; its style is which maps go together, anywhere, the Gram matrix

    G_l = F_l F_l^T / (C L)                              fastnn.functional.gram_matrix(F, normalize=True)

The painting x starts as the photograph, and L-BFGS lowers

    loss(x) = 0.035 |F(x) - F(photograph)|^2 / |F(photograph)|^2
            + mean over layers of |G_l(x) - G_l(style)|^2 / |G_l(style)|^2
            + 0.02 (mean squared difference of neighbouring pixels, "total variation")

where distances are relative to their targets, so that the factors suit any weights. torchvision's
trained weights are taken by --weights vgg19.pth (its state_dict, with the keys features.0.weight and so on).
Without them the weights are random (He's initialisation, average pooling): such a network recognises nothing,
but its Gram matrices still carry colours and textures, which is enough for a style.

The convolutions are torch's and take most of the time. The picture says how much of it the Gram matrices and
gradients take, by fastnn, which computes one triangle and mirrors it, and by torch, which computes all.

    python examples/style_transfer.py [--out DIR] [--weights vgg19.pth] [--small] [--full]
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from tqdm import tqdm

import fastnn

STYLE = (1, 6, 11, 20)  # relu1_1, relu2_1, relu3_1, relu4_1 in torchvision's numbering
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # torchvision's
fastnn_gram = partial(fastnn.functional.gram_matrix, normalize=True)
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False}


class VGG19(nn.Module):
    """VGG19 up to relu4_1, with torchvision's layer numbers and therefore its state_dict keys."""

    def __init__(self, pool: nn.Module, content: int) -> None:
        super().__init__()
        self.content = content  # the layer of the content
        self.features = nn.Sequential()
        channels = 3
        for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512):  # 0: halve height and width
            if width:
                self.features.extend([nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()])
                channels = width
            else:
                self.features.append(pool)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """The features of an image (1, 3, H, W) at the layers of style and content."""
        x = (image - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
        found = {}
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in STYLE or number == self.content:
                found[number] = x
        return found


def make_vgg(weights: Path | None) -> VGG19:
    """With torchvision's weights, or random ones of He's initialisation."""
    if weights is None:
        vgg = VGG19(nn.AvgPool2d(2), content=3)  # relu1_2 keeps shapes sharp
        for layer in vgg.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        return vgg.requires_grad_(False)
    vgg = VGG19(nn.MaxPool2d(2), content=13)  # relu3_2
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        vgg.load_state_dict({key: state[key] for key in vgg.state_dict()})
    except Exception as error:  # there are many ways to be no state_dict of VGG19
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.80}"
        raise SystemExit(f"{weights}: expected torchvision's state_dict of vgg19: {reason}") from None
    return vgg.requires_grad_(False)


def photograph(name: str, height: int) -> Tensor:
    """One of scikit-learn's photographs as (1, 3, height, width), 0 to 1."""
    pixels = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)[None] / 255
    size = (height, height * pixels.shape[3] // pixels.shape[2])
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True)


def distance(a: Tensor, target: Tensor) -> Tensor:
    """Squared, relative to the target's size."""
    return (a - target).square().sum() / target.square().sum()


def torch_gram(features: Tensor) -> Tensor:
    """What tutorials write."""
    flat = features.flatten(2)
    return flat @ flat.mT / features[0].numel()


def paint(vgg: VGG19, content: Tensor, style: Tensor, steps: int, gram: Callable) -> tuple:
    """The painting, and loss and seconds of each evaluation."""
    content_features, style_features = vgg(content)[vgg.content], vgg(style)
    style_grams = {layer: gram(style_features[layer]) for layer in STYLE}
    x = content.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([x], max_iter=steps, max_eval=steps, history_size=20, tolerance_change=0.0)
    losses, seconds = [], []
    progress = tqdm(total=steps, unit="evaluation", disable=None)

    def closure() -> Tensor:
        start = time.perf_counter()
        optimizer.zero_grad()
        features = vgg(x)
        loss = 0.035 * distance(features[vgg.content], content_features)
        loss = loss + sum(distance(gram(features[n]), style_grams[n]) for n in STYLE) / len(STYLE)
        loss = loss + 0.02 * (x.diff(dim=2).square().mean() + x.diff(dim=3).square().mean())
        loss.backward()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
        progress.update()
        return loss

    optimizer.step(closure)
    progress.close()
    return x.detach(), losses, seconds


def measure_gram(maps: list[Tensor], gram: Callable, others: Callable) -> tuple[float, float, float]:
    """Milliseconds of Gram matrices and gradients of all layers by both functions, and their difference."""
    ms, results = ([], []), ([], [])
    for _ in range(7):
        for spent, made, function in zip(ms, results, (gram, others), strict=True):
            made.clear()
            inputs = [m.clone().requires_grad_() for m in maps]
            start = time.perf_counter()
            for features in inputs:
                matrix = function(features)
                made += [matrix.detach(), *torch.autograd.grad((matrix * matrix).sum(), features)]
            spent.append(1e3 * (time.perf_counter() - start))
    difference = max(float((a - b).norm() / b.norm()) for a, b in zip(*results, strict=True))
    return min(ms[0]), min(ms[1]), difference


def main() -> int:
    parser = argparse.ArgumentParser(description="One photograph painted in the style of another.")
    parser.add_argument("--out", type=Path, default=Path("runs/style_transfer"))
    parser.add_argument("--weights", type=Path, help="torchvision's vgg19 state_dict")
    parser.add_argument("--small", action="store_true", help="a stamp, few evaluations")
    parser.add_argument("--full", action="store_true", help="a larger picture, 300 evaluations")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    vgg = make_vgg(args.weights)
    kind = "torchvision's weights" if args.weights else "random weights (He), average pooling"
    height, steps = (48, 40) if args.small else (256, 300) if args.full else (112, 60)
    content, style = photograph("china.jpg", height), photograph("flower.jpg", height)
    print(f"VGG19 with {kind}, {content.shape[3]} x {content.shape[2]} pixels, {steps} evaluations")
    x, losses, seconds = paint(vgg, content, style, steps, fastnn_gram)
    features = vgg(x)
    ours, theirs, difference = measure_gram([features[layer] for layer in STYLE], fastnn_gram, torch_gram)
    whole = 1e3 * statistics.median(seconds)  # one evaluation with fastnn's Gram matrices
    times = {
        "evaluation, ms": whole,
        "Gram matrices and gradients by fastnn, ms": ours,
        "Gram matrices and gradients by torch, ms": theirs,
        "share of Gram by fastnn, %": 100 * ours / whole,
        "share of Gram by torch, %": 100 * theirs / (whole - ours + theirs),
        "speed-up of Gram": theirs / ours,
    }
    claims = {
        "loss falls by, times": claim(losses[0] / min(losses), at_least=2.0 if args.weights else 20.0),
        "Gram matrices and gradients, relative difference from torch's": claim(difference, at_most=1e-5),
    }
    pictures = {"content": content, "style": style, f"painting, {len(losses)} evaluations": x}
    draw(args.out / "style_transfer.png", kind, pictures, losses, times)
    source = f"china and flower of scikit-learn; VGG19 with {kind}"
    metrics = {"claims": claims, "times": times, "data": source}
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


def draw(path: Path, kind: str, pictures: dict[str, Tensor], losses: list[float], times: dict) -> None:
    figure, axes = plt.subplot_mosaic("ABC;DDE", figsize=(11, 6), layout="constrained")
    figure.suptitle(f"Style transfer: VGG19 with {kind}")
    for place, (name, image) in zip("ABC", pictures.items(), strict=True):
        axes[place].imshow(image[0].permute(1, 2, 0).clamp(0, 1).numpy())
        axes[place].set_title(name)
        axes[place].set_axis_off()
    axes["D"].plot(losses, color="#0b6e99")
    axes["D"].set(title="Loss", xlabel="evaluation", yscale="log")
    for who, color in (("fastnn", "#0b6e99"), ("torch", "#d9730d")):
        bar = axes["E"].barh(who, times[f"Gram matrices and gradients by {who}, ms"], color=color)
        axes["E"].bar_label(bar, [f" {times[f'share of Gram by {who}, %']:.1f}% of an evaluation"])
    axes["E"].margins(x=1.0)
    axes["E"].invert_yaxis()
    axes["E"].set(title="Gram matrices and their gradients", xlabel="ms")
    figure.savefig(path, dpi=72)


if __name__ == "__main__":
    sys.exit(main())
