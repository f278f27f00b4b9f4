"""Training steps put together at random: models, losses, views, in-place ops, clipping, optimizers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.Hardtanh, nn.Mish,
]  # fmt: skip

# From (rows, features) to the same shape; each gets a number in [0, 1) for its choices.
SAME_SHAPE: list[Callable[[Tensor, float], Tensor]] = [
    lambda h, u: h * (1 + u) - 0.3,
    lambda h, u: h + h.mean(0),
    lambda h, u: h - h.mean(1, keepdim=True),
    lambda h, u: h / (1 + h.abs().sum(-1, keepdim=True)),
    lambda h, u: h.clamp(-1, 0.5 + u),
    lambda h, u: h.softmax(-1),
    lambda h, u: h.log_softmax(0),
    lambda h, u: h.exp().clamp(max=3.0),
    lambda h, u: (h.square() + 1e-3).sqrt(),
    lambda h, u: (h.abs() + 0.1).log(),
    lambda h, u: torch.where(h > u, h, -h),
    lambda h, u: torch.minimum(h, h.flip(0)),
    lambda h, u: torch.max(h, h.detach() * u),
    lambda h, u: h.t().contiguous().t() + 1,
    lambda h, u: torch.cat([h[:, 1:], h[:, :1]], 1),
    lambda h, u: torch.stack(h.unbind(1), 1),
    lambda h, u: h.reshape(-1).view_as(h) * 2,
    lambda h, u: h.cumsum(1) * 0.1,
    lambda h, u: (h + 0).add_(u).mul_(0.5),
    lambda h, u: (h * 1).clamp_(min=-u),
    lambda h, u: h.masked_fill(h < -u, 0.0),
    lambda h, u: h.index_select(1, torch.arange(h.shape[1] - 1, -1, -1)),
    lambda h, u: h.gather(1, h.detach().argsort(1)),
    lambda h, u: h - h.logsumexp(1, keepdim=True),
    lambda h, u: h / h.norm(dim=1, keepdim=True).clamp(min=0.1),
    lambda h, u: h * h.detach().amax(1, keepdim=True).sigmoid(),
    lambda h, u: (h - h.mean()) / (h.std() + 1e-2),
    lambda h, u: F.dropout(h, 0.2 + 0.5 * u),
    lambda h, u: h + torch.randn_like(h) * 0.01,
    lambda h, u: torch.lerp(h, h.square(), u),
    lambda h, u: F.normalize(h, dim=1),
    lambda h, u: h @ (h.t() @ h) / h.shape[0],
    lambda h, u: torch.addcmul(h, h, h, value=u),
    lambda h, u: h.pow(3) * 0.1,
    lambda h, u: torch.bmm(h[None], torch.eye(h.shape[1], dtype=h.dtype)[None])[0],
    lambda h, u: h.narrow(0, 0, 1).expand_as(h) + h,
]


def _classes(target: Tensor, output: Tensor) -> Tensor:
    return (target[:, 0].abs() * 100).long() % output.shape[1]


LOSSES: list[Callable[[Tensor, Tensor], Tensor]] = [
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    lambda o, t: F.huber_loss(o, t, delta=0.3, reduction="sum") * 0.01,
    lambda o, t: F.cross_entropy(o, _classes(t, o)),
    lambda o, t: F.nll_loss(o.log_softmax(-1), _classes(t, o), reduction="sum") * 0.01,
    lambda o, t: F.binary_cross_entropy_with_logits(o, t.sigmoid()),
    lambda o, t: F.kl_div(o.log_softmax(-1), t.softmax(-1), reduction="batchmean"),
    lambda o, t: (o.gather(1, _classes(t, o)[:, None])[:, 0] - t[:, 0]).square().mean(),
    lambda o, t: F.cross_entropy(o, t.softmax(-1)),
    lambda o, t: F.cross_entropy(o, _classes(t, o), label_smoothing=0.1),
    lambda o, t: (o - t).abs().max() + (o * t).mean(),
    lambda o, t: -torch.distributions.Normal(o, 1.5).log_prob(t).sum(-1).mean(),
    lambda o, t: -torch.distributions.Categorical(logits=o).entropy().mean() + o.var(),
]

# eps is large if rounding would otherwise decide how far a weight with a gradient near 0 moves.
OPTIMIZERS: list[Callable[[Any], torch.optim.Optimizer]] = [
    lambda p: torch.optim.SGD(p, lr=0.01),
    lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1, nesterov=True),
    lambda p: torch.optim.Adam(p, lr=1e-3, eps=1e-2),
    lambda p: torch.optim.Adam(p, lr=1e-3, eps=1e-2, amsgrad=True, weight_decay=0.1),
    lambda p: torch.optim.AdamW(p, lr=1e-3, eps=1e-2),
    lambda p: torch.optim.RMSprop(p, lr=1e-3, eps=1e-2, momentum=0.5),
    lambda p: torch.optim.Adagrad(p, lr=1e-3, eps=1e-2),
    lambda p: torch.optim.NAdam(p, lr=1e-3, eps=1e-2),
]


class Program:
    """One random training step; ``make()`` recreates it, from the same weights."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.seed = seed
        self.rows, self.features = rng.choice([2, 3, 8, 17, 32, 64]), rng.choice([2, 3, 8, 16, 17, 33])
        self.dtype = rng.choice([torch.float64, torch.float64, torch.float32])
        self.layers = [self._layer(rng) for _ in range(rng.randint(1, 5))]
        self.ops = [(rng.choice(SAME_SHAPE), rng.random()) for _ in range(rng.randint(0, 4))]
        self.after = [(rng.choice(SAME_SHAPE), rng.random()) for _ in range(rng.randint(0, 3))]
        self.losses = [rng.choice(LOSSES) for _ in range(rng.choice([1, 1, 2]))]
        self.optimizer = rng.choice(OPTIMIZERS)
        self.clip = rng.choice([None, None, "norm", "value"])
        self.zero = rng.choice(["before", "before", "after", "to zero"])
        self.target = rng.random() < 0.3
        self.separately = rng.random() < 0.5
        self.keep_grad = rng.random() < 0.3

    def _layer(self, rng: random.Random) -> tuple[str, Any]:
        kind = rng.choice(
            ["linear", "linear", "linear", "activation", "activation", "batch", "layer", "drop"]
        )
        return kind, rng.choice(ACTIVATIONS) if kind == "activation" else rng.choice([4, 8, 16, 31])

    def _model(self) -> nn.Sequential:
        width, parts = self.features, []
        for kind, choice in self.layers:
            if kind == "linear":
                parts.append(nn.Linear(width, choice, bias=choice != 8))
                width = choice
            elif kind == "activation":
                parts.append(choice())
            else:
                parts.append(
                    {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}[kind](width)
                    if kind != "drop"
                    else nn.Dropout(0.3)
                )
        return nn.Sequential(*parts, nn.Linear(width, self.features)).to(self.dtype)

    def make(self) -> tuple[Callable[[Tensor, Tensor], Any], nn.Module, torch.optim.Optimizer]:
        """The step, its model and its optimizer."""
        torch.manual_seed(self.seed)
        model = self._model()
        target = self._model() if self.target else None
        optimizer = self.optimizer(model.parameters())

        def step(x: Tensor, y: Tensor) -> Any:
            if self.zero == "before":
                optimizer.zero_grad()
            elif self.zero == "to zero":
                optimizer.zero_grad(set_to_none=False)
            h = x
            for op, u in self.ops:
                h = op(h, u)
            out = model(h)
            for op, u in self.after:
                out = op(out, u)
            if target is not None:
                with torch.no_grad():
                    y = y + 0.1 * target(x)
            losses = [loss(out, y) for loss in self.losses]
            if self.separately:
                for i, loss in enumerate(losses):
                    loss.backward(retain_graph=i + 1 < len(losses))
            else:
                sum(losses).backward()  # type: ignore[union-attr]
            norm: Any = 0
            if self.clip == "norm":
                norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            elif self.clip == "value":
                nn.utils.clip_grad_value_(model.parameters(), 0.01)
            optimizer.step()
            if self.zero == "after":
                optimizer.zero_grad()
            if target is not None:
                for p, t in zip(model.parameters(), target.parameters(), strict=True):
                    t.data.mul_(0.9).add_(p.data, alpha=0.1)
            return [loss.detach() for loss in losses], norm, out.detach()

        return step, model, optimizer

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """A batch for it."""
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        shape = (self.rows, self.features)
        return tuple(torch.randn(shape, generator=generator, dtype=self.dtype) for _ in range(2))  # type: ignore[return-value]
