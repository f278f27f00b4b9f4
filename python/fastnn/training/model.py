"""Model, loss, optimizer and step of a run: fastnn's, or the same of torch's own."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

import fastnn.nn
import fastnn.optim
from fastnn import _dispatch
from fastnn.data import Batches
from fastnn.training.config import TrainConfig

Steps = Callable[[Batches, int, Sequence[float]], Tensor]
"""Takes batches, the number of the first to train on, and the learning rate of each step from there on;
returns the losses, detached."""


class Parts(NamedTuple):
    """What is trained, and with what."""

    model: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer


def build(config: TrainConfig, inputs: int, classes: int, device: torch.device) -> Parts:
    """The parts of a run, with initial weights that depend on `config.seed` and the layers alone.

    torch's Adam is the fused one, its fastest.
    The weights are drawn on the CPU in float32 and then moved, so that fastnn and torch, and every device,
    start from the same. torch's global generator is left as it was.
    """
    layers = [inputs, *config.hidden, classes]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model: nn.Module = torch_mlp(layers) if config.native else fastnn.nn.MLP(layers, activation="relu")
    model = model.to(device=device, dtype=getattr(torch, config.dtype))
    if config.native:
        fused = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
        return Parts(model, nn.CrossEntropyLoss(), fused)
    optimizer = fastnn.optim.Adam(model.parameters(), lr=config.lr)
    return Parts(model, fastnn.nn.CrossEntropyLoss(), optimizer)


def torch_mlp(
    widths: Sequence[int], activation: type[nn.Module] = nn.ReLU, linear: type[nn.Linear] = nn.Linear
) -> nn.Sequential:
    """Linear layers with an activation between them."""
    modules: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        modules += [linear(width, following), activation()]
    return nn.Sequential(*modules[:-1])


def fastnn_steps(parts: Parts, mean: float, std: float) -> Steps:
    """Steps on images of bytes, whose pixels enter the network as ``(pixel - mean) / std``."""
    # TrainStep takes both in units of 255, white.
    step = fastnn.TrainStep(parts.model, parts.loss, parts.optimizer, mean=mean / 255, std=std / 255)

    def take(batches: Batches, first: int, rates: Sequence[float]) -> Tensor:
        rows = batches.rows(first, first + len(rates))
        return step.epoch(batches.images, batches.labels, batches.batch_size, rows, lr=rates)

    return take


def torch_steps(parts: Parts) -> Steps:
    """Steps of plain torch on normalised images."""
    model, loss_of, optimizer = parts

    def take(batches: Batches, first: int, rates: Sequence[float]) -> Tensor:
        losses = []
        for number, rate in enumerate(rates, first):
            for group in optimizer.param_groups:
                group["lr"] = rate
            rows = batches.rows(number, number + 1)
            optimizer.zero_grad(set_to_none=True)
            output = model(batches.images.index_select(0, rows))
            loss: Tensor = loss_of(output, batches.labels.index_select(0, rows))
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    return take


def rehearse(parts: Parts, stepping: Callable[[Parts], Steps], batches: Batches) -> str:
    """Take two of the steps that `stepping` makes on a copy of `parts`, and tell which backend ran them.

    One-time costs (threads, lazily made handles) are then paid before the clock starts; the weights and the
    optimizer's state stay untouched. Only the second step is reported: in the first, the optimizer makes its
    state.

    Returns:
        What `describe` says.
    """
    take = stepping(copy.deepcopy(parts))  # copied together: the copied optimizer updates the copied model
    rates = [parts.optimizer.param_groups[0]["lr"]]
    take(batches, 0, rates)
    decisions: list[_dispatch.Decision] = []
    with _dispatch.recording(decisions.append):
        take(batches, 0, rates)
    return describe(decisions)


def describe(decisions: list[_dispatch.Decision]) -> str:
    """The backend of one step in words, from where each op ran.

    ``"torch"`` if fastnn was not asked, with the reasons if no op ran natively; else ``"fastnn"`` with the
    instruction set in use and either ``many steps a call`` or ``one call a step`` or why `fastnn.TrainStep`
    ran op by op, and the ops that torch ran after all, with the reason.
    """
    reasons = {d.op: d.reason for d in decisions if d.reason is not None}
    native = any(d.reason is None for d in decisions)
    for op in ("train_epoch", "chain_step"):
        reasons.pop(op, None)  # then the steps tell where they ran
    many = any(d.op == "train_epoch" and d.reason is None for d in decisions)
    whole = reasons.pop("train_step", None)
    if not native:
        why = ", ".join(sorted(set(reasons.values()))) or whole
        return f"torch ({why})" if why else "torch"
    words = f"fastnn {_dispatch.cpu.isa}, " + (
        f"op by op ({whole})" if whole else "many steps a call" if many else "one call a step"
    )
    if reasons:
        words += "; torch for " + ", ".join(f"{op} ({reason})" for op, reason in sorted(reasons.items()))
    return words
