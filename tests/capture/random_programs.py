"""Training steps put together at random: models, losses, clipping, optimizers, targets."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from random_parts import ACTIVATIONS, LOSSES, OPTIMIZERS, SAME_SHAPE, SOFT_UPDATES


class Network:
    """A model of random layers, from `features` to as many."""

    def __init__(self, rng: random.Random, most_layers: int) -> None:
        self._layers = [self._layer(rng) for _ in range(rng.randint(1, most_layers))]

    def _layer(self, rng: random.Random) -> tuple[str, Any]:
        kind = rng.choice([*["linear"] * 3, *["activation"] * 2, "batch", "layer", "drop", "tied"])
        return kind, rng.choice(ACTIVATIONS) if kind == "activation" else rng.choice([4, 8, 16, 31])

    def make(self, features: int) -> nn.Sequential:
        width, parts = features, []
        for kind, choice in self._layers:
            if kind == "linear":
                parts.append(nn.Linear(width, choice, bias=choice != 8))
                width = choice
            elif kind == "activation":
                parts.append(choice())
            elif kind == "tied":
                tied = nn.Linear(width, width)
                parts += [tied, nn.Tanh(), tied]
            elif kind == "drop":
                parts.append(nn.Dropout(0.3))
            else:
                parts.append({"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}[kind](width))
        return nn.Sequential(*parts, nn.Linear(width, features))


class Pass:
    """One model's way from an input to losses."""

    def __init__(self, rng: random.Random, model: int, models: int, *, target: bool) -> None:
        self.model = model
        self.ops = [(rng.choice(SAME_SHAPE), rng.random()) for _ in range(rng.randint(0, 4 // models))]
        self.after = [(rng.choice(SAME_SHAPE), rng.random()) for _ in range(rng.randint(0, 3 // models))]
        self.losses = [rng.choice(LOSSES) for _ in range(rng.choice([1, 1, 2]))]
        # The detached output of an earlier model of this step is added to the input or to the goal.
        self.reads = rng.choice([None, "input", "goal"]) if models > 1 else None
        # The model that the output goes through: gradients pass it, and are left there unless it is frozen.
        self.through = rng.randrange(models) if models > 1 and rng.random() < 0.3 else None
        self.freezes = rng.random() < 0.3
        self.from_target = target and rng.random() < 0.6


class Phase:
    """One optimizer's part of a step: passes of its models, their backward calls, an update."""

    def __init__(self, rng: random.Random, passes: list[Pass]) -> None:
        self.passes = passes
        self.optimizer = rng.choice(OPTIMIZERS)
        self.by_groups = rng.random() < 0.3
        self.clip = rng.choice([None, None, "norm", "value"])
        self.clipped = rng.choice(passes).model
        self.clamps = rng.random() < 0.1
        self.zero = rng.choice(["before", "before", "after", "to zero"])
        self.separately = rng.random() < 0.5

    def make(self, models: list[nn.Module]) -> torch.optim.Optimizer:
        """Its optimizer."""
        # Each parameter once, if models share some.
        params = list({p: None for each in self.passes for p in models[each.model].parameters()})
        if not self.by_groups:
            return self.optimizer(params)
        half = len(params) // 2
        return self.optimizer([{"params": params[:half], "lr": 2e-3}, {"params": params[half:]}])


class Made(NamedTuple):
    """A step, and all that it changes."""

    step: Callable[[Tensor, Tensor], Any]
    models: nn.Module
    optimizers: list[torch.optim.Optimizer]


class Program:
    """One random training step; ``make()`` recreates it, from the same weights."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.seed = seed
        self.rows, self.features = rng.choice([2, 3, 8, 17, 32, 64]), rng.choice([2, 3, 8, 16, 17, 33])
        self.dtype = rng.choice([torch.float64, torch.float64, torch.float32])
        count = rng.choice([1, 1, 1, 2, 2, 3])
        self.networks = [Network(rng, 1 + 3 // count) for _ in range(count)]
        self.shares_a_layer = count > 1 and rng.random() < 0.2
        self.target = rng.choice([None, None, "frozen", "no_grad"])
        self.target_in_eval_mode = rng.random() < 0.5
        self.soft_update = rng.choice(SOFT_UPDATES)
        optimizers = min(rng.randint(1, 3), count)
        passes = [
            Pass(rng, model, count, target=self.target is not None)
            for model in rng.sample(range(count), count)
        ]
        self.phases = [Phase(rng, passes[i::optimizers]) for i in range(optimizers)]
        if self.shares_a_layer:
            # Zeroed by one and dropped by another, gradients of an earlier call may be read: that is refused.
            for phase in self.phases:
                phase.zero = self.phases[0].zero
        # All backward calls before any optimizer's step.
        self.together = rng.random() < 0.3
        self.keep_grad = rng.random() < 0.3

    def _models(self) -> list[nn.Module]:
        models: list[nn.Module] = [network.make(self.features) for network in self.networks]
        if self.shares_a_layer:
            shared = nn.Linear(self.features, self.features)
            models[:2] = [nn.Sequential(shared, model) for model in models[:2]]
        return [model.to(self.dtype) for model in models]

    def make(self) -> Made:
        """The step, its models and their optimizers."""
        torch.manual_seed(self.seed)
        models = self._models()
        optimizers = [phase.make(models) for phase in self.phases]
        target = None
        if self.target is not None:
            target = copy.deepcopy(models[0]).train(not self.target_in_eval_mode)
            target.requires_grad_(self.target != "frozen")

        def of_target(x: Tensor) -> Tensor:
            assert target is not None
            if self.target == "frozen":
                return target(x)  # type: ignore[no-any-return]
            with torch.no_grad():
                return target(x)  # type: ignore[no-any-return]

        def run(each: Pass, earlier: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
            h = x + 0.1 * earlier if each.reads == "input" else x
            for op, u in each.ops:
                h = op(h, u)
            out = models[each.model](h)
            for op, u in each.after:
                out = op(out, u)
            if each.through is not None:
                model = models[each.through].requires_grad_(not each.freezes)
                out = model(out)
                model.requires_grad_()
            if each.from_target:
                y = y + 0.1 * of_target(out)
            if each.reads == "goal":
                y = y + 0.1 * earlier
            return out.detach(), [loss(out, y) for loss in each.losses]

        def backward(
            phase: Phase, optimizer: torch.optim.Optimizer, outs: list[Tensor], *data: Tensor
        ) -> Any:
            if phase.zero == "before":
                optimizer.zero_grad()
            elif phase.zero == "to zero":
                optimizer.zero_grad(set_to_none=False)
            losses: list[Tensor] = []
            for each in phase.passes:
                out, of_pass = run(each, outs[-1] if outs else data[0], *data)
                outs.append(out)
                losses += of_pass
            if phase.separately:
                for i, loss in enumerate(losses):
                    loss.backward(retain_graph=i + 1 < len(losses))
            else:
                sum(losses).backward()  # type: ignore[union-attr]
            return [loss.detach() for loss in losses]

        def update(phase: Phase, optimizer: torch.optim.Optimizer) -> Any:
            params = list(models[phase.clipped].parameters())
            norm: Any = 0
            if phase.clip == "norm":
                norm = nn.utils.clip_grad_norm_(params, 0.5)
            elif phase.clip == "value":
                nn.utils.clip_grad_value_(params, 0.01)
            optimizer.step()
            if phase.clamps:
                for p in params:
                    p.data.clamp_(-0.2, 0.2)
            return norm

        parts = list(zip(self.phases, optimizers, strict=True))

        def step(x: Tensor, y: Tensor) -> Any:
            outs: list[Tensor] = []
            losses, norms = [], []
            for part in parts:
                losses.append(backward(*part, outs, x, y))
                if not self.together:
                    norms.append(update(*part))
            if self.together:
                norms = [update(*part) for part in parts]
            for phase, optimizer in parts:
                if phase.zero == "after":
                    optimizer.zero_grad()
            if target is not None:
                self.soft_update(target, models[0])
            return losses, norms, outs

        return Made(step, nn.ModuleList([*models, *([] if target is None else [target])]), optimizers)

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """A batch for it."""
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        shape = (self.rows, self.features)
        return tuple(torch.randn(shape, generator=generator, dtype=self.dtype) for _ in range(2))  # type: ignore[return-value]
