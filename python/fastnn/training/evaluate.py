"""Accuracy and loss on the test images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

_ROWS = 2000  # at once: large enough for the products, small enough for the cache


class Evaluation(NamedTuple):
    """Predictions for every test image, in order, on the CPU: classes int64 (N,), losses float32 (N,)."""

    predicted: Tensor
    losses: Tensor
    accuracy: float

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return self.losses.mean().item()


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> Evaluation:
    """Run `model` on normalised `images` (N, pixels) and compare with `labels` (N,)."""
    training = model.training
    model.eval()
    predicted, losses = [], []
    for some, right in zip(images.split(_ROWS), labels.split(_ROWS), strict=True):
        logits = model(some).float()
        predicted.append(logits.argmax(dim=1))
        losses.append(nn.functional.cross_entropy(logits, right, reduction="none"))
    model.train(training)
    classes = torch.cat(predicted)
    accuracy = (classes == labels).double().mean().item()
    return Evaluation(classes.cpu(), torch.cat(losses).cpu(), accuracy)
