"""What changes between recorded steps is noticed."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnn
from recorded_steps import DOUBLE, Net, WithNorms, batch, step_of
from train_steps import TOLERANCE, native, recorded

GAIN, SETTINGS = 1.0, {"gain": 1.0}


class Slotted:
    __slots__ = ("gain",)

    def __init__(self) -> None:
        self.gain = 1.0


class Reading(Net):
    gain = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.ModuleList([nn.Linear(4, 4, dtype=DOUBLE)])
        self.nothing: Any = None
        self.recent, self.chosen, self.numbers, self.slotted = deque([1.0]), {1.0}, np.ones(2), Slotted()

    def activate(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(self.activate(self.fc1(x)))
        for layer in self.more:
            x = layer(x)
        if self.nothing is not None:
            x = self.nothing(x)
        x = x * self.scale * self.gain * GAIN * self.settings[0] * self.table["gain"] * SETTINGS["gain"]
        x = x * getattr(self, "extra", 1.0) * helper()
        x = x * self.recent[0] * min(self.chosen) * float(self.numbers[0]) * self.slotted.gain
        return x if self.training else torch.tanh(x)


HELP = 1.0


def helper() -> float:
    return HELP


def _freeze(step: Any) -> None:
    step.model.fc1.bias.requires_grad_(False)


def _replace(step: Any) -> None:
    step.model.fc1.weight = nn.Parameter(torch.ones(5, 6, dtype=DOUBLE))
    step.optimizer.param_groups[0]["params"][0] = step.model.fc1.weight


def _data(step: Any) -> None:
    step.model.fc1.weight.data = torch.ones(6, 5, dtype=DOUBLE).t()


def _append(step: Any) -> None:
    torch.manual_seed(4)
    step.model.more.append(nn.Linear(4, 4, dtype=DOUBLE))
    step.optimizer.add_param_group({"params": list(step.model.more[-1].parameters())})


def _hook(step: Any) -> None:
    step.model.fc2.register_forward_hook(lambda _, __, out: out * 1.5)


def _gradient_hook(step: Any) -> None:
    step.model.fc2.weight.register_hook(lambda grad: grad * 1.5)


def _later_hook(step: Any) -> None:
    def scale(p: Tensor) -> None:
        assert p.grad is not None
        p.grad.mul_(1.5)

    step.model.fc2.weight.register_post_accumulate_grad_hook(scale)


def _step_hook(step: Any) -> None:
    def zero(optimizer: Any, *_: Any) -> None:
        optimizer.param_groups[0]["params"][0].grad.zero_()

    step.optimizer.register_step_pre_hook(zero)


def _load(step: Any) -> None:
    step.optimizer.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))


CHANGES: dict[str, Callable[[Any], object]] = {
    "an attribute": lambda s: setattr(s.model, "scale", 1.5),
    "a new attribute": lambda s: setattr(s.model, "extra", 1.5),
    "an item of a list": lambda s: s.model.settings.__setitem__(0, 1.5),
    "an item of a dict": lambda s: s.model.table.update(gain=1.5),
    "an item of a deque": lambda s: s.model.recent.__setitem__(0, 1.5),
    "a set": lambda s: s.model.chosen.add(0.5),
    "a number in an array": lambda s: s.model.numbers.__setitem__(0, 1.5),
    "a slot": lambda s: setattr(s.model.slotted, "gain", 1.5),
    "a method": lambda s: setattr(s.model, "activate", torch.sin),
    "None": lambda s: setattr(s.model, "nothing", torch.sin),
    "evaluation": lambda s: s.model.eval(),
    "a frozen parameter": _freeze,
    "a parameter": _replace,
    "its memory": _data,
    "a layer": _append,
    "a hook of a module": _hook,
    "a hook of a gradient": _gradient_hook,
    "a hook after accumulation": _later_hook,
    "a hook of the optimizer": _step_hook,
    "the optimizer's state": _load,
    "the learning rate": lambda s: s.optimizer.param_groups[0].update(lr=0.02),
    "the loss": lambda s: setattr(s, "loss", lambda x, y: x.square().mean().log()),
    "clipping": lambda s: setattr(s, "max_norm", 1e-3),
}
PATCHES: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "a class attribute": lambda m: m.setattr(Reading, "gain", 1.5),
    "a global": lambda m: m.setitem(globals(), "GAIN", 1.5),
    "an item of a global dict": lambda m: m.setitem(SETTINGS, "gain", 1.5),
    "a global of a helper": lambda m: m.setitem(globals(), "HELP", 1.5),
    "a helper": lambda m: m.setitem(globals(), "helper", lambda: 1.5),
    "the class's method": lambda m: m.setattr(Reading, "activate", lambda self, x: torch.sin(x)),
    "its forward": lambda m: m.setattr(Reading, "forward", lambda self, x: self.fc2(self.fc1(x))),
    "Linear.forward": lambda m: m.setattr(
        nn.Linear, "forward", lambda self, x: F.linear(x, 2 * self.weight, self.bias)
    ),
    "F.relu": lambda m: m.setattr(F, "relu", torch.tanh),
    "F.cross_entropy": lambda m: m.setattr(F, "cross_entropy", lambda x, y: x.square().mean().log()),
}


def _losses_and_parameters(model: nn.Module, change: Callable[[Any], object], *, off: bool) -> list[Tensor]:
    """The losses and parameters of steps around a change; `off`: by torch."""
    torch.manual_seed(5)
    step = step_of(copy.deepcopy(model), "sgd", lambda x, y: F.cross_entropy(x, y))
    losses = []
    with fastnn.disabled() if off else contextlib.nullcontext():
        for i in range(10):
            if i == 5:
                change(step)
            losses.append(native(step, *batch()) if i == 4 and not off else step(*batch()))
    return [*losses, *step.model.parameters()]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed(name: str) -> None:
    model = Reading()
    ours, theirs = (_losses_and_parameters(model, CHANGES[name], off=off) for off in (False, True))
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_is_noticed(name: str) -> None:
    model, results = Reading(), []
    for off in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            results.append(_losses_and_parameters(model, lambda _: PATCHES[name](patch), off=off))
    torch.testing.assert_close(*results, rtol=TOLERANCE, atol=TOLERANCE)


class Config:
    weight = 1.0


class Weighted:
    """A loss in a custom object."""

    def __init__(self) -> None:
        self.scale, self.parts, self.config = 1.0, [1.0], Config()

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.method(x, y)

    def method(self, x: Tensor, y: Tensor, more: float = 1.0) -> Tensor:
        return self.scale * self.parts[0] * self.config.weight * GAIN * more * F.cross_entropy(x, y)


LOSSES: dict[str, Callable[[Weighted], Any]] = {
    "an object": lambda o: o,
    "a bound method": lambda o: o.method,
    "a partial": lambda o: functools.partial(o.method, more=1.5),
    "a partial of a partial": lambda o: functools.partial(functools.partial(o.method), more=1.5),
    "a closure": lambda o: lambda x, y: o.method(x, y),
    "a default": lambda o: lambda x, y, loss=o: loss(x, y),
}
OF_LOSSES: dict[str, Callable[[pytest.MonkeyPatch, Weighted], object]] = {
    "an attribute": lambda m, o: setattr(o, "scale", 2.0),
    "an item of it": lambda m, o: o.parts.__setitem__(0, 2.0),
    "an attribute of it": lambda m, o: setattr(o.config, "weight", 2.0),
    "a class attribute": lambda m, o: m.setattr(Config, "weight", 2.0),
    "a global": lambda m, o: m.setitem(globals(), "GAIN", 2.0),
}


@pytest.mark.parametrize("change", OF_LOSSES)
@pytest.mark.parametrize("name", LOSSES)
def test_what_a_loss_of_the_users_reads_is_watched(
    name: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, fixed = Weighted(), batch()
    loss = LOSSES[name](own)
    step = recorded(step_of(WithNorms(), loss=loss), *fixed)
    native(step, *fixed)
    OF_LOSSES[change](monkeypatch, own)
    expected = loss(step.model(fixed[0]), fixed[1]).detach()
    torch.testing.assert_close(step(*fixed), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_functions_among_attributes_and_teachers_are_watched() -> None:
    class Calls(Net):
        def __init__(self) -> None:
            super().__init__()
            self.function = lambda x: x * SETTINGS["gain"]

        def forward(self, x: Tensor) -> Tensor:
            return self.function(super().forward(x))

    teacher, fixed = Reading(), batch()
    step = recorded(step_of(Calls(), loss=lambda x, y: F.mse_loss(x, teacher(fixed[0]))), *fixed)
    for change in (lambda: SETTINGS.update(gain=1.5), lambda: setattr(teacher, "scale", 1.5)):
        recorded(step, *fixed)
        native(step, *fixed)
        change()
        expected = step.loss(step.model(fixed[0]), None).detach()
        torch.testing.assert_close(step(*fixed), expected, rtol=TOLERANCE, atol=TOLERANCE)
    SETTINGS["gain"] = 1.0


scale = 0


def test_a_global_variable_with_the_name_of_an_attribute_may_change() -> None:
    global scale
    step = recorded(step_of(Reading()), *batch())
    for _ in range(3):
        scale += 1
        native(step, *batch())


def test_what_no_forward_reads_may_change() -> None:
    class Trainer:
        def __init__(self) -> None:
            self.weight, self.steps, self.model = 2.0, 0, Reading()
            self.step = step_of(self.model, loss=lambda x, y: self.weight * F.cross_entropy(x, y))

    trainer, plain = Trainer(), nn.Sequential(WithNorms(), nn.Softplus())
    of_plain = recorded(step_of(plain), *batch())
    recorded(trainer.step, *batch())
    for _ in range(3):
        trainer.steps += 1
        trainer.model.updates = plain.updates = trainer.steps
        native(of_plain, *batch())
        native(trainer.step, *batch())
    before = native(trainer.step, *(fixed := batch()))
    trainer.weight = 0.0
    assert trainer.step(*fixed) == 0.0 != before


def test_evaluation_between_epochs_costs_no_recording() -> None:
    step = recorded(step_of(WithNorms()), *batch())
    for _ in range(3):
        native(step, *batch())
        step.model.eval()
        step.model(batch()[0])
        step.model.train()
        native(step, *batch())


def _wrapped_again(step: Any) -> None:
    vars(step.optimizer).pop("step", None)
    torch.optim.lr_scheduler.StepLR(step.optimizer, 1000)


def _converted(step: Any) -> None:
    is_torchs = type(step.optimizer).__module__.startswith("torch.")
    (fastnn.convert if is_torchs else fastnn.revert)(step.optimizer)


def _listed_otherwise(step: Any) -> None:
    type(step.model).parameters = lambda self, recurse=True: nn.Module.parameters(self, recurse)


@pytest.mark.parametrize("change", [_wrapped_again, _converted, _listed_otherwise])
def test_what_changes_in_each_step_is_named(change: Callable[[Any], None]) -> None:
    class Own(Net):
        pass

    step, reasons = recorded(step_of(Own()), *batch()), set()
    for _ in range(9):
        change(step)
        reasons |= {d.reason for d in fastnn.explain(step, *batch()).decisions if d.op == "train_step"}
    why = (
        "the class or step of the optimizer, or parameters() or zero_grad() of a module, changes in each step"
    )
    assert any(reason.endswith(f"it cannot be recorded: {why}") for reason in reasons)
