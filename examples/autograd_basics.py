"""Tensors and autograd: each statement of a first lesson is executed, and checked.

Autograd remembers how a tensor was computed and finds, by the chain rule from the back to the front, the
derivative of a number by every tensor it depends on. For the classic first example

    x = ones(2, 2)    y = x + 2    z = 3 y^2    out = mean(z)

the derivative is dout/dx = 6 (x + 2) / 4 = 4.5, in each of the four places. What fastnn computes is part of
the same graph: its ops take tensors of torch, give tensors of torch, and autograd goes through them.

    python examples/autograd_basics.py [--out DIR] [--small]
"""

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import fastnn

CLAIMS: dict[str, dict] = {}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


def claim(name: str, value: Any, expected: Any, tolerance: float = 0.0) -> None:
    """Note that `value` is `expected`; where it is not, the program ends with an error."""
    value = torch.as_tensor(value).tolist()
    holds = np.shape(value) == np.shape(expected)
    holds = holds and bool(np.abs(np.subtract(value, expected, dtype=float)).max() <= tolerance)
    CLAIMS[name] = {"value": value, "expected": expected, "tolerance": tolerance, "holds": holds}
    print(f"{'ok  ' if holds else 'FAIL'} {name}: {value}")


def tensors() -> None:
    print("\n# Creating tensors, viewing them, broadcasting, sharing memory with numpy")
    claim("torch.zeros(2, 3)", torch.zeros(2, 3), [[0, 0, 0], [0, 0, 0]])
    claim("torch.arange(6).view(2, 3)", torch.arange(6).view(2, 3), [[0, 1, 2], [3, 4, 5]])
    torch.manual_seed(0)
    first = torch.rand(3)
    torch.manual_seed(0)
    claim("torch.rand after the same seed is the same", torch.equal(torch.rand(3), first), True)

    x = torch.arange(6)
    view = x.view(2, 3)
    view[0, 0] = 100  # a view is the same memory in another shape
    claim("x[0] after view[0, 0] = 100", x[0], 100)
    claim("x.view(3, -1).shape", list(x.view(3, -1).shape), [3, 2])
    claim("view.T is not contiguous", view.T.is_contiguous(), False)  # rows are not one after the other

    row, column = torch.tensor([0.0, 10.0, 20.0]), torch.tensor([[1.0], [2.0]])
    claim("(3,) + (2, 1)", row + column, [[1, 11, 21], [2, 12, 22]])  # both are stretched to (2, 3)

    array = np.ones(3)
    tensor = torch.from_numpy(array)
    array += 1
    claim("a tensor from_numpy after array += 1", tensor, [2, 2, 2])  # one memory
    tensor.mul_(10)  # the underscore: in place
    claim("the array after tensor.mul_(10)", array, [20, 20, 20])
    copied = torch.tensor(array)
    array += 1
    claim("torch.tensor(array), a copy, after array += 1", copied, [20, 20, 20])


def gradients() -> None:
    print("\n# requires_grad, grad_fn, backward, accumulation")
    x = torch.ones(2, 2, requires_grad=True)
    y = x + 2
    z = 3 * y**2
    out = z.mean()
    claim("x, a leaf, has no grad_fn", x.grad_fn is None, True)
    claim("y knows that it is a sum", y.grad_fn.name() == "AddBackward0", True)
    claim("out", out, 27.0)
    out.backward()
    claim("dout/dx", x.grad, [[4.5, 4.5], [4.5, 4.5]], 1e-6)

    x = torch.tensor(1.0, requires_grad=True)
    (x**2).backward()
    claim("d(x^2)/dx at 1", x.grad, 2.0)
    (x**2).backward()
    claim("after a second backward: gradients add up", x.grad, 4.0)
    x.grad = None  # what optimizer.zero_grad() does
    (x**2).backward()
    claim("after x.grad = None and a third", x.grad, 2.0)

    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    (x * x).backward(torch.tensor([1.0, 0.1, 0.0]))  # not a number: a weight for each of its elements
    claim("the gradient of a weighted sum of x^2", x.grad, [2.0, 0.4, 0.0], 1e-6)
    (first,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)  # has a graph of its own
    (second,) = torch.autograd.grad(first.sum(), x)
    claim("the second derivative of x^3", second, [6.0, 12.0, 18.0], 1e-5)


def without_gradients() -> None:
    print("\n# no_grad, detach, freezing")
    x = torch.tensor(3.0, requires_grad=True)
    with torch.no_grad():
        claim("inside no_grad nothing is remembered", (x * 2).requires_grad, False)
    claim("outside it is", (x * 2).requires_grad, True)
    (x * (x * x).detach()).backward()  # what is detached is a constant, 9
    claim("d(x * detach(x^2))/dx at 3", x.grad, 9.0)

    model = fastnn.nn.MLP([4, 8, 2])
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)  # freeze the first layer
    before = [parameter.clone() for parameter in model.parameters()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = fastnn.optim.SGD(trained, lr=0.1)
    model(torch.ones(5, 4)).square().sum().backward()
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    claim("which parameters moved, the first layer being frozen", moved, [False, False, True, True])


def fastnn_in_the_graph(rounds: int) -> dict[str, float]:
    print("\n# fastnn's ops are part of the graph")
    torch.manual_seed(0)
    x = torch.randn(32, 17)
    layers = [nn.Linear(17, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 6)]
    theirs = nn.Sequential(*layers)
    ours = fastnn.convert(copy.deepcopy(theirs))  # of the same modules, and all layers become one node
    models = {"torch": theirs, "fastnn": ours}
    for model in models.values():
        model(x).square().mean().backward()
    print(f"grad_fn of torch's output: {theirs(x).grad_fn.name()}; of fastnn's: {ours(x).grad_fn.name()}")
    for (name, p), q in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        apart = ((p.grad - q.grad).norm() / p.grad.norm()).item()
        claim(f"gradient of {name}: relative difference of fastnn's to torch's", apart, 0.0, 1e-5)

    small = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((3, 4), (2, 4), (2,))]
    layer = fastnn.functional.linear
    with_tanh = torch.autograd.gradcheck(lambda x, w, b: layer(x, w, b, activation="tanh"), small)
    claim("gradcheck: fastnn's gradients are the numerical ones", with_tanh, True)

    optimizers = {"torch": torch.optim.Adam(theirs.parameters())}
    optimizers["fastnn"] = fastnn.optim.Adam(ours.parameters())
    seconds = {name: [] for name in models}
    for _ in tqdm(range(rounds), desc="training steps"):
        for name, model in models.items():  # they take turns, so that both meet the same machine
            begin = time.perf_counter()
            optimizers[name].zero_grad()
            model(x).square().mean().backward()
            optimizers[name].step()
            seconds[name].append(time.perf_counter() - begin)
    return {name: float(np.median(spent)) for name, spent in seconds.items()}


def draw(file: Path, times: dict[str, float]) -> None:
    figure, (left, middle, right, bars) = plt.subplots(1, 4, figsize=(14, 3.8), layout="constrained")
    figure.suptitle("Tensors and autograd")
    x = torch.linspace(-4, 4, 200, requires_grad=True)
    y = x * torch.sin(x)
    y.sum().backward()
    at = x.detach()
    left.plot(at, y.detach(), color="#8a8a8a", label="x sin x")
    left.plot(at, torch.sin(at) + at * torch.cos(at), color="#e3b98f", linewidth=6, label="its derivative")
    left.plot(at, x.grad, color="#0b6e99", label="by autograd")
    left.set(title="backward() finds derivatives", xlabel="x")
    left.legend()

    row, column = torch.tensor([0.0, 10.0, 20.0]), torch.tensor([[1.0], [2.0], [3.0]])
    middle.imshow(row + column, cmap="Blues", vmin=-8, vmax=40)
    for (i, j), value in np.ndenumerate((row + column).numpy()):
        middle.text(j, i, f"{value:.0f}", ha="center", va="center")
    middle.set(title="Broadcasting: (3,) + (3, 1)", xlabel="the row", ylabel="the column")
    middle.set_xticks(range(3), [f"{value:.0f}" for value in row])
    middle.set_yticks(range(3), [f"{value:.0f}" for value in column.flatten()])

    kept, cleared = (torch.tensor(1.0, requires_grad=True) for _ in range(2))
    grads = np.empty((2, 4))
    for call in range(4):
        cleared.grad = None
        (kept**2 + cleared**2).backward()
        grads[:, call] = kept.grad, cleared.grad
    right.bar(np.arange(1, 5) - 0.2, grads[0], 0.38, color="#d9730d", label="never cleared")
    right.bar(np.arange(1, 5) + 0.2, grads[1], 0.38, color="#0b6e99", label="cleared each time")
    right.set(title="Gradients add up (of x^2 at 1)", xlabel="calls of backward()", ylabel="x.grad")
    right.set_xticks(range(1, 5))
    right.legend()

    drawn = bars.bar(list(times), [1e6 * t for t in times.values()], color=["#d9730d", "#0b6e99"])
    bars.bar_label(drawn, fmt="%.0f", padding=2)
    bars.set(title="17-64-64-6: a step, op by op", ylabel="microseconds (median)", ymargin=0.1)
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/autograd_basics"), help="for the results")
    parser.add_argument("--small", action="store_true", help="fewer rounds of measurement")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    tensors()
    gradients()
    without_gradients()
    times = fastnn_in_the_graph(100 if args.small else 2000)
    each = ", ".join(f"{1e6 * seconds:.0f} us ({name})" for name, seconds in times.items())
    print(f"forward, backward and Adam: {each}")
    print(f"fastnn is {times['torch'] / times['fastnn']:.1f} times as fast as torch")

    draw(args.out / "autograd_basics.png", times)
    metrics = {"claims": CLAIMS, "times": times, "data": "small tensors, seed 0"}
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(f"picture and numbers are in {args.out}")
    if not all(entry["holds"] for entry in CLAIMS.values()):
        raise SystemExit("a claim does not hold")


if __name__ == "__main__":
    main()
