"""What a training step trains and how, and each side's step from the same weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastnn
import fastnn.nn
import fastnn.optim
from fastnn.training.model import torch_mlp

from ..case import Foreign
from ..peers import compiled

EAGER = "fastnn eager"

Step = Callable[[Tensor, Tensor], Tensor]


def eager_step(
    model: Callable[[Tensor], Tensor],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    clip: Callable[[], object] = lambda: None,
) -> Step:
    """The step as usually written; returns the loss, detached."""

    def step(x: Tensor, target: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model(x), target)
        loss.backward()
        clip()
        optimizer.step()
        return loss.detach()

    return step


@dataclass(frozen=True)
class Recipe:
    """A network, a batch, and what a step on it does besides products.

    A classifier has class indices as targets and the cross-entropy as its loss; anything else has a table of
    floats and the mean squared error. `eps` is Adam's; `max_norm` bounds the norm of all gradients.
    """

    widths: tuple[int, ...]
    batch: int
    classifier: bool = True
    activation: type[nn.Module] = nn.ReLU
    eps: float = 1e-8
    max_norm: float | None = None

    @property
    def shape(self) -> str:
        return f"{'-'.join(map(str, self.widths))}, batch {self.batch}"

    @property
    def flops(self) -> int:
        """6 per weight and sample, minus 2 for the gradient of the network's input."""
        products = [wide * narrow for wide, narrow in itertools.pairwise(self.widths)]
        return self.batch * (6 * sum(products) - 2 * products[0])

    @property
    def traffic(self) -> int:
        """Batch read, parameters and both moments read and written; activations may stay in a cache."""
        parameters = sum((wide + 1) * narrow for wide, narrow in itertools.pairwise(self.widths))
        target = 8 if self.classifier else 4 * self.widths[-1]
        return 4 * (self.batch * self.widths[0] + 6 * parameters) + target * self.batch

    def network(self) -> nn.Sequential:
        return torch_mlp(self.widths, self.activation)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss() if self.classifier else nn.MSELoss()

    def data(self, rows: int) -> tuple[Tensor, Tensor]:
        """Random samples and their targets."""
        x, width = torch.randn(rows, self.widths[0]), self.widths[-1]
        return x, torch.randint(width, (rows,)) if self.classifier else torch.randn(rows, width)


class Sides:
    """Each side's step of a recipe; all start from the same weights."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._reference = recipe.network()

    def _started(self) -> nn.Sequential:
        model = self._recipe.network()
        model.load_state_dict(self._reference.state_dict())
        return model

    def _converted(self) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
        model = fastnn.convert(self._started())
        optimizer = fastnn.optim.Adam(model.parameters(), eps=self._recipe.eps)
        loss = self._recipe.loss()
        if isinstance(loss, torch.nn.CrossEntropyLoss):  # others have no counterpart
            fastnn.convert(loss)
        return model, loss, optimizer

    def _eagerly(
        self,
        model: nn.Module,
        loss_of: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip_grad_norm: Callable[[Iterable[Tensor], float], Tensor],
    ) -> Step:
        if (bound := self._recipe.max_norm) is None:
            return eager_step(model, loss_of, optimizer)
        clip = partial(clip_grad_norm, list(model.parameters()), bound)
        return eager_step(model, loss_of, optimizer, clip)

    def train_step(self) -> fastnn.TrainStep:
        return fastnn.TrainStep(*self._converted(), max_norm=self._recipe.max_norm)

    def fastnn_eager(self) -> Step:
        return self._eagerly(*self._converted(), fastnn.nn.utils.clip_grad_norm_)

    def torch_eager(self, adam: Callable[..., torch.optim.Optimizer] = torch.optim.Adam) -> Step:
        model = self._started()
        optimizer = adam(model.parameters(), eps=self._recipe.eps)
        return self._eagerly(model, self._recipe.loss(), optimizer, nn.utils.clip_grad_norm_)

    def torch_fused(self) -> Step:
        return self.torch_eager(partial(torch.optim.Adam, fused=True))

    def torch_compiled(self) -> Step:
        recipe = self._recipe
        return compiled.training_step(
            self._started(), recipe.loss(), eps=recipe.eps, max_norm=recipe.max_norm
        )

    def foreign(self, op: str, **data: Any) -> Foreign:
        """The step as passed to other libraries: the operation `op`, on `data` from the same weights."""
        recipe = self._recipe
        values = [parameter.detach() for parameter in self._reference.parameters()]
        settings = (
            {}
            if recipe.classifier
            else {
                "activation": recipe.activation.__name__,
                "eps": recipe.eps,
                "max_norm": recipe.max_norm,
            }
        )
        return Foreign(op, {"values": values, **data, **settings})
