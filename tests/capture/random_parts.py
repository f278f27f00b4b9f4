"""The parts of random training steps: activations, ops, losses, optimizers, soft updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnn

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
    lambda p: torch.optim.NAdam(p, lr=1e-3, eps=1e-2),
]
for _of in (torch.optim, fastnn.optim):
    OPTIMIZERS += [
        lambda p, of=_of: of.SGD(p, lr=0.01),
        lambda p, of=_of: of.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1, nesterov=True),
        lambda p, of=_of: of.Adam(p, lr=1e-3, eps=1e-2),
        lambda p, of=_of: of.Adam(p, lr=1e-3, eps=1e-2, amsgrad=True, weight_decay=0.1),
        lambda p, of=_of: of.AdamW(p, lr=1e-3, eps=1e-2),
        lambda p, of=_of: of.RMSprop(p, lr=1e-3, eps=1e-2, momentum=0.5),
        lambda p, of=_of: of.Adagrad(p, lr=1e-3, eps=1e-2),
    ]


def _by_polyak(target: nn.Module, source: nn.Module) -> None:
    fastnn.optim.polyak_(target.parameters(), source.parameters(), 0.1)


def _by_polyak_with_buffers(target: nn.Module, source: nn.Module) -> None:
    fastnn.optim.polyak_(target.state_dict().values(), source.state_dict().values(), 0.1)


def _pairs(target: nn.Module, source: nn.Module) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(target.parameters(), source.parameters(), strict=True)


@torch.no_grad()
def _by_lerp(target: nn.Module, source: nn.Module) -> None:
    for t, s in _pairs(target, source):
        t.lerp_(s, 0.1)


@torch.no_grad()
def _by_copy(target: nn.Module, source: nn.Module) -> None:
    for t, s in _pairs(target, source):
        t.copy_(0.1 * s + 0.9 * t)


def _by_data(target: nn.Module, source: nn.Module) -> None:
    for t, s in _pairs(target, source):
        t.data.mul_(0.9).add_(s.data, alpha=0.1)


SOFT_UPDATES: list[Callable[[nn.Module, nn.Module], None]] = [
    _by_polyak, _by_polyak_with_buffers, _by_lerp, _by_copy, _by_data,
]  # fmt: skip
