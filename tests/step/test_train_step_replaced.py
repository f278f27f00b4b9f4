"""If a program has replaced a torch class or function, the step runs the replacement."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import adagrad, adam, rmsprop, sgd

import fastnn
from train_steps import LOSSES, OPTIMIZERS, chain, classes_of, model_for, native, reason, recorded


def _batch() -> tuple[Tensor, Tensor]:
    return torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)


def _step(
    kind: str, model: nn.Module | None = None, loss: Any = None, max_norm: float | None = None
) -> fastnn.TrainStep:
    model = chain([6, 8, 5]) if model is None else model
    make = {"adamw-torch": torch.optim.AdamW, "adam-torch": torch.optim.Adam, **OPTIMIZERS}[kind]
    return fastnn.TrainStep(model, loss or nn.CrossEntropyLoss(), make(model.parameters()), max_norm=max_norm)


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8, dtype=torch.float64)
        self.fc2 = nn.Linear(8, 8, dtype=torch.float64)
        self.fc3 = nn.Linear(8, 5, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.body(torch.flatten(x, 1)))

    def body(self, x: Tensor) -> Tensor:
        return self.fc2(F.tanh(self.fc1(x))).sigmoid()


def _fastnn_net() -> nn.Module:
    return fastnn.nn.MLP([6, 8, 5], dtype=torch.float64)


def _fastnn_layers() -> nn.Module:
    return nn.Sequential(*_fastnn_net())


CASES: dict[str, tuple[Any, str, Any]] = {
    "Linear.forward": (nn.Linear, "forward", lambda: _step("adam")),
    "Linear.__call__": (nn.Linear, "__call__", lambda: _step("adam")),
    "ReLU.forward": (nn.ReLU, "forward", lambda: _step("adam")),
    "Tanh.forward": (nn.Tanh, "forward", lambda: _step("sgd", chain([6, 8, 5], "tanh"))),
    "Sequential.forward": (nn.Sequential, "forward", lambda: _step("adam")),
    "Module.__call__": (nn.Module, "__call__", lambda: _step("sgd")),
    "Module._call_impl": (nn.Module, "_call_impl", lambda: _step("sgd")),
    "CrossEntropyLoss.forward": (nn.CrossEntropyLoss, "forward", lambda: _step("sgd")),
    "fastnn's Linear.forward": (fastnn.nn.Linear, "forward", lambda: _step("adam", _fastnn_layers())),
    "fastnn's Sequential.forward": (fastnn.nn.Sequential, "forward", lambda: _step("adam", _fastnn_net())),
    "fastnn's CrossEntropyLoss.forward": (
        fastnn.nn.CrossEntropyLoss,
        "forward",
        lambda: _step("sgd", loss=fastnn.nn.CrossEntropyLoss()),
    ),
    "the model's own forward": (Written, "forward", lambda: _step("adam", Written())),
    "the model's own method": (Written, "body", lambda: _step("adam", Written())),
    "Adam.step": (torch.optim.Adam, "step", lambda: _step("adam-torch")),
    "AdamW.step": (torch.optim.AdamW, "step", lambda: _step("adamw-torch")),
    "SGD.step": (torch.optim.SGD, "step", lambda: _step("sgd")),
    "RMSprop.step": (torch.optim.RMSprop, "step", lambda: _step("rmsprop")),
    "torch's Adagrad.step, which fastnn's heeds": (torch.optim.Adagrad, "step", lambda: _step("adagrad")),
    "torch's Adam.step, which fastnn's heeds": (torch.optim.Adam, "step", lambda: _step("adam")),
    "fastnn's Adam.step": (fastnn.optim.Adam, "step", lambda: _step("adam")),
    "the function that Adam.step calls": (adam, "adam", lambda: _step("adam-torch")),
    "the one that AdamW.step calls": (adam, "adam", lambda: _step("adamw-torch")),
    "the one that this calls": (adam, "_single_tensor_adam", lambda: _step("adam")),
    "the one that SGD.step calls": (sgd, "sgd", lambda: _step("sgd")),
    "the one that RMSprop.step calls": (rmsprop, "rmsprop", lambda: _step("rmsprop")),
    "the one that Adagrad.step calls": (adagrad, "adagrad", lambda: _step("adagrad")),
    "the method that Adam.step calls": (torch.optim.Adam, "_init_group", lambda: _step("adam-torch")),
    "clip_grad_norm_": (torch.nn.utils, "clip_grad_norm_", lambda: _step("adam", max_norm=1.0)),
    "torch.autograd.backward": (torch.autograd, "backward", lambda: _step("adam")),
    "Tensor.backward": (Tensor, "backward", lambda: _step("adam")),
    "F.linear": (F, "linear", lambda: _step("adam")),
    "F.relu": (F, "relu", lambda: _step("adam")),
    "F.cross_entropy": (F, "cross_entropy", lambda: _step("adam")),
    "F.tanh": (F, "tanh", lambda: _step("adam", Written())),
    "Tensor.sigmoid": (Tensor, "sigmoid", lambda: _step("adam", Written())),
    "torch.flatten": (torch, "flatten", lambda: _step("adam", Written())),
}


class Calls:
    """How many there were, in an iterator: a step that changes anything else stays eager for that."""

    def __init__(self) -> None:
        self._made = itertools.count()

    def __len__(self) -> int:
        return next(copy.copy(self._made))

    def patched(self, original: Any) -> Any:
        @functools.wraps(original)
        def mine(*args: Any, **kwargs: Any) -> Any:
            next(self._made)
            return original(*args, **kwargs)

        return mine


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("steps", [0, 2])
def test_what_is_replaced_is_called(name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, make = CASES[name]
    step = make()
    if steps and isinstance(step.model, Written):
        recorded(step, *_batch())
    for _ in range(steps):
        native(step, *_batch())
    calls = Calls()
    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, calls.patched(getattr(owner, attribute)))
        reason(step, *_batch())
        count = len(calls)
        assert count > 0
        reason(step, *_batch())
        assert len(calls) == 2 * count
    recorded(step, *_batch())
    native(step, *_batch())
    assert len(calls) == 2 * count


@pytest.mark.parametrize(
    ("owner", "name", "loss"),
    [
        (nn.MSELoss, "forward", "mse"),
        (F, "mse_loss", "mse"),
        (nn.L1Loss, "forward", "l1"),
        (F, "l1_loss", "l1"),
        (nn.SmoothL1Loss, "forward", "smooth-l1"),
        (F, "smooth_l1_loss", "smooth-l1"),
        (nn.HuberLoss, "forward", "huber"),
        (F, "huber_loss", "huber"),
        (nn.BCEWithLogitsLoss, "forward", "bce"),
        (F, "binary_cross_entropy_with_logits", "bce"),
        (nn.NLLLoss, "forward", "nll"),
        (F, "nll_loss", "nll"),
        (nn.LogSoftmax, "forward", "nll"),
        (F, "log_softmax", "nll"),
        (Tensor, "log_softmax", "nll"),
        (F, "cross_entropy", "probabilities"),
    ],
)
def test_a_replaced_loss(owner: Any, name: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = LOSSES[loss]
    step = _step("sgd", model_for(case, [6, 8, 5]), case.make(5))
    batch = torch.randn(7, 6, dtype=torch.float64), case.target(7, 5)
    native(step, *batch)
    calls = Calls()
    monkeypatch.setattr(owner, name, calls.patched(getattr(owner, name)))
    reason(step, *batch)
    assert calls  # twice while recording: torch calls the name again under a function mode


def test_an_eager_step_clips_by_the_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    step = _step("sgd", max_norm=1.0)
    step.model[0].register_forward_hook(lambda *_: None)
    calls = Calls()
    original = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", calls.patched(original))
    for _ in range(3):
        step(*_batch())
    assert len(calls) == 3


def test_a_patch_is_the_reason_from_the_first_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    step = recorded(_step("adam", Written()), *_batch())
    native(step, *_batch())
    forward = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: forward(self, x))
    for _ in range(10):
        decisions = fastnn.explain(step, *_batch()).decisions
        why = next(d.reason for d in decisions if d.op == "train_step")
        assert why.endswith("torch.nn.modules.linear.Linear.forward was replaced")


def test_an_optimizer_made_after_its_class_was_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch wraps the present step of a class when the first object is created."""
    calls = Calls()
    plain = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", calls.patched(getattr(plain, "__wrapped__", plain)))
    monkeypatch.delattr(torch.optim.SGD.step, "hooked", raising=False)
    step = _step("sgd")
    assert reason(step, *_batch()) == "torch.optim.sgd.SGD.step was replaced"
    assert len(calls) == 1


def test_another_optimizer_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    step = _step("adam-torch")
    native(step, *_batch())
    with monkeypatch.context() as patch:
        patch.setattr("fastnn.step.planned.make_plan", None)  # the plan is kept
        for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, fastnn.optim.Adam):
            kind(chain([6, 5]).parameters(), lr=0.1)
        nn.Linear.adapter = None
        native(step, *_batch())
    del nn.Linear.adapter


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        ("HuberLoss", "delta", 0.01),
        ("SmoothL1Loss", "beta", 0.01),
        ("L1Loss", "reduction", "sum"),
        ("CrossEntropyLoss", "label_smoothing", 0.5),
        ("BCEWithLogitsLoss", "pos_weight", torch.tensor(3.0, dtype=torch.float64)),
    ],
)
def test_a_property_on_the_class_of_the_loss(
    kind: str, option: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes precedence over the attribute of that name, before and after the plan is made."""
    loss = getattr(nn, kind)()
    model = chain([6, 5])
    step = fastnn.TrainStep(model, loss, torch.optim.SGD(model.parameters(), lr=0.0))
    x, y = torch.randn(7, 6, dtype=torch.float64), torch.rand(7, 5, dtype=torch.float64)
    native(step, x, y)
    monkeypatch.setattr(type(loss), option, property(lambda _: value), raising=False)
    expected = loss(model(x), y).detach()
    late = fastnn.TrainStep(model, loss, torch.optim.SGD(model.parameters(), lr=0.0))
    for each in (step, late):
        assert torch.equal(each(x, y), expected)
        assert reason(each, x, y) == f"{kind} has a property {option}"
