"""Model, loss and optimizer of a run: fastnn's, or the same of torch's own."""

from __future__ import annotations

import copy
import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

import fastnn.nn
import fastnn.optim
from fastnn import _backend
from fastnn.training.config import TrainConfig


class Parts(NamedTuple):
    """What is trained, and with what."""

    model: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer


def build(config: TrainConfig, inputs: int, classes: int, device: torch.device) -> Parts:
    """The parts of a run, with initial weights that depend on `config.seed` and the layers alone.

    The weights are drawn on the CPU in float32 and then moved, so that fastnn and torch, and every device,
    start from the same. torch's global generator is left as it was.
    """
    layers = [inputs, *config.hidden, classes]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model: nn.Module = _torch_mlp(layers) if config.native else fastnn.nn.MLP(layers, activation="relu")
    model = model.to(device=device, dtype=getattr(torch, config.dtype))
    if config.native:
        return Parts(model, nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=config.lr))
    optimizer = fastnn.optim.Adam(model.parameters(), lr=config.lr)
    return Parts(model, fastnn.nn.CrossEntropyLoss(), optimizer)


def _torch_mlp(layers: list[int]) -> nn.Sequential:
    modules: list[nn.Module] = []
    for width, following in itertools.pairwise(layers):
        modules += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def step(parts: Parts, images: Tensor, labels: Tensor) -> Tensor:
    """One training step: forward, loss, backward, update. Returns the loss, detached."""
    parts.optimizer.zero_grad(set_to_none=True)
    loss: Tensor = parts.loss(parts.model(images), labels)
    loss.backward()
    parts.optimizer.step()
    return loss.detach()


def rehearse(parts: Parts, images: Tensor, labels: Tensor) -> str:
    """Take two steps on a copy of `parts`, and tell which backend ran them.

    What is paid once (threads, lazily made handles) is then paid before the clock starts; the weights and the
    optimizer's state stay untouched.

    Returns:
        ``"torch"``; or ``"fastnn"`` with the instruction set in use, as observed: ops that ran on torch after
        all are named with the reason.
    """
    rehearsal = copy.deepcopy(parts)  # as one: the copied optimizer updates the copied model
    decisions: list[_backend.Decision] = []
    with _backend.recording(decisions.append):
        for _ in range(2):
            step(rehearsal, images, labels)
    return describe(decisions)


def describe(decisions: list[_backend.Decision]) -> str:
    """The backend in words, from where each op ran."""
    fallen_back = {d.op: d.reason for d in decisions if d.reason is not None}
    native = any(d.reason is None for d in decisions)
    if not native:
        reasons = ", ".join(sorted({str(reason) for reason in fallen_back.values()}))
        return f"torch ({reasons})" if reasons else "torch"
    words = f"fastnn {_backend.cpu.isa}"
    if fallen_back:
        words += "; torch for " + ", ".join(f"{op} ({reason})" for op, reason in sorted(fallen_back.items()))
    return words
