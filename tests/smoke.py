"""Checks an installed wheel, in seconds and without pytest: ``python tests/smoke.py``.

For each release of Python and torch that a wheel supports; the suite tests everything else.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

os.environ["FASTNN_ALWAYS_NATIVE"] = "1"  # the tensors here are small

import torch
import torch.nn.functional as F
from torch import nn

import fastnn
import fastnn.optim


def twins() -> tuple[list[nn.Sequential], torch.Tensor, torch.Tensor]:
    """A model of torch's, the same one converted, and a batch."""
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    ours = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    ours.load_state_dict(theirs.state_dict())
    fastnn.convert(ours)
    return [theirs, ours], torch.randn(64, 784), torch.randint(10, (64,))


def same(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Fail where two results are further apart than rounding."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda text: f"{what}: {text}")


def check_ops_and_optimizer() -> None:
    """Some eager training steps."""
    (theirs, ours), x, target = twins()
    steps = [torch.optim.Adam(theirs.parameters()), fastnn.optim.Adam(ours.parameters())]
    for _ in range(3):
        losses = []
        for model, loss_of, optimizer in (
            (theirs, F.cross_entropy, steps[0]),
            (ours, fastnn.functional.cross_entropy, steps[1]),
        ):
            optimizer.zero_grad()
            loss = loss_of(model(x), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        same("loss of an eager step", losses[1], losses[0])
    gram = fastnn.functional.gram_matrix(x)
    same("gram_matrix", gram, x @ x.T)


def check_train_step() -> None:
    """The single-kernel step of a chain."""
    (theirs, ours), x, target = twins()
    optimizer = torch.optim.Adam(theirs.parameters())
    step = fastnn.TrainStep(ours, nn.CrossEntropyLoss(), fastnn.optim.Adam(ours.parameters()), native=True)
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(theirs(x), target)
        loss.backward()
        optimizer.step()
        same("loss of TrainStep", torch.as_tensor(step(x, target)), loss.detach())


def check_capture() -> None:
    """A recorded function that is not a chain."""
    w = torch.randn(32, 32)

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(torch.tanh(x @ w) + x, dim=1)

    captured = fastnn.capture(function)
    for _ in range(5):
        x = torch.randn(16, 32)
        same("a captured function", captured(x), function(x))


def main() -> None:
    """Run all checks."""
    info = fastnn.info()
    print(
        f"python {sys.version.split()[0]}, torch {torch.__version__}, fastnn {fastnn.__version__} {info.isa}"
    )
    assert info.native, f"the kernels do not run: {info}"
    assert version("fastnn") == fastnn.__version__
    check_ops_and_optimizer()
    check_train_step()
    check_capture()
    command = [sys.executable, "-m", "fastnn", "info"]
    assert "torch" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print("all well")


if __name__ == "__main__":
    main()
