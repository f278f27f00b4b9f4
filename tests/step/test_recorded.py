"""TrainStep of models that are no chain: recorded and replayed, recorded anew or eager where needed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnn
from train_steps import (
    ELEMENTWISE,
    OPTIMIZERS,
    TOLERANCE,
    chain,
    classes_of,
    compare,
    eager_step,
    native,
    recorded,
)

DOUBLE = torch.float64
COUNT, GAIN, SETTINGS, OUTSIDE = 0, 1.0, {"gain": 1.0}, torch.ones(4, dtype=DOUBLE)


class Net(nn.Module):
    """Layers, for the forwards below."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 5, dtype=DOUBLE), nn.Linear(5, 4, dtype=DOUBLE)
        self.scale, self.settings, self.table = 1.0, [1.0], {"gain": 1.0}

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


def batch(m: int = 7) -> tuple[Tensor, Tensor]:
    return torch.randn(m, 6, dtype=DOUBLE), classes_of(m, 4)


def step_of(model: nn.Module, make: str = "adam", loss: Any = F.cross_entropy, **options: Any) -> Any:
    return fastnn.TrainStep(model, loss, OPTIMIZERS[make](model.parameters()), **options)


# Models as programs have them.


class WithNorms(Net):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.ln = nn.BatchNorm1d(5, dtype=DOUBLE), nn.LayerNorm(5, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.ln(self.bn(self.fc1(x)))))


class Residual(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x) + x[:, :5].tanh())


class Attention(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.fc2((h @ h.t()).softmax(-1) @ h)


class WithoutGradient(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = F.relu(self.fc1(x))
        return self.fc2(x)


class Inherits(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.05, "keep_grad": True}], ids=["plain", "clip-grad"])
@pytest.mark.parametrize("make", ["adam-l2", "sgd-momentum", "rmsprop", "adagrad"])
@pytest.mark.parametrize("kind", [Net, WithNorms, Residual, Attention, Inherits])
def test_hand_written_forwards(kind: type[Net], make: str, options: dict[str, Any]) -> None:
    compare(kind(), F.cross_entropy, OPTIMIZERS[make], [batch(7), batch(33)], 1e-6, recorded=True, **options)


def test_another_optimizer_and_another_loss() -> None:
    compare(
        Net(), nn.MultiMarginLoss(), lambda p: torch.optim.NAdam(p, lr=1e-2), [batch()], 1e-7, recorded=True
    )


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_output_without_second_dimension(name: str) -> None:
    class Value(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, :1].squeeze(-1)

    case = ELEMENTWISE[name]
    batches = [(torch.randn(m, 6, dtype=DOUBLE), case.target(m, 1).squeeze(1)) for m in (9, 40)]
    compare(Value(), case.make(1), OPTIMIZERS["adam-l2"], batches, 1e-7, recorded=True)


@pytest.mark.parametrize(
    "output",
    [
        lambda x: F.log_softmax(x, 1),
        lambda x: torch.log_softmax(x, dim=-1),
        lambda x: x.log_softmax(dim=1),
    ],
)
def test_nll_of_a_log_softmax_in_the_forward(output: Callable[[Tensor], Tensor]) -> None:
    class LogProbabilities(Net):
        def forward(self, x: Tensor) -> Tensor:
            return output(super().forward(x))

    compare(LogProbabilities(), nn.NLLLoss(), OPTIMIZERS["adam-l2"], [batch(), batch(9)], 1e-7, recorded=True)


def test_images() -> None:
    model = WithNorms()
    twin = copy.deepcopy(model)
    theirs = OPTIMIZERS["sgd"](twin.parameters())
    step = step_of(model, "sgd", mean=0.1, std=0.3)
    for i in range(6):
        x, y = torch.randint(256, (5, 6), dtype=torch.uint8), classes_of(5, 4)
        if i > 3:
            native(step, x, y)
        else:
            step(x, y)
        eager_step(twin, F.cross_entropy, theirs, (x.double() / 255 - 0.1) / 0.3, y)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-7)


def test_dropout_draws_torchs_numbers() -> None:
    model = nn.Sequential(*chain([6, 16]), nn.Dropout(0.3), *chain([16, 4]))
    twin = copy.deepcopy(model)
    theirs = OPTIMIZERS["adam-l2"](twin.parameters())
    step, batches = step_of(model, "adam-l2"), [batch() for _ in range(6)]
    torch.manual_seed(3)
    losses = [step(*b) for b in batches]
    torch.manual_seed(3)
    expected = [eager_step(twin, F.cross_entropy, theirs, *b) for b in batches]
    torch.testing.assert_close(losses, expected, rtol=1e-7, atol=1e-7)


# What the Python of a forward does beside its tensors.


class Branches(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class Stores(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.hidden = F.relu(self.fc1(x))
        return self.fc2(self.hidden)


class Counts(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.scale = self.scale * 0.9
        return super().forward(x) * self.scale


class CountsInAList(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.settings[0] *= 0.9
        return super().forward(x) * self.settings[0]


class CountsInADict(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.table["gain"] *= 0.9
        return super().forward(x) * self.table["gain"]


class CountsGlobally(Net):
    def forward(self, x: Tensor) -> Tensor:
        global COUNT
        COUNT += 1
        return super().forward(x) / COUNT


class KeepsABuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4, dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


class Draws(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * random.random()


class MakesNoise(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(4, dtype=DOUBLE)


class OutsideTensor(Net):
    def forward(self, x: Tensor) -> Tensor:
        OUTSIDE.mul_(0.9)
        return super().forward(x) + OUTSIDE


class AsksForTheMode(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if torch.is_grad_enabled() else x * 2


class CallsItsOwnWay(Net):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2


class FrozenInPart(Net):
    def __init__(self) -> None:
        super().__init__()
        self.fc1.weight.requires_grad_(False)


@pytest.mark.parametrize(
    "kind",
    [
        *(Branches, Stores, Counts, CountsInAList, CountsInADict, CountsGlobally, KeepsABuffer),
        *(Draws, MakesNoise, OutsideTensor, AsksForTheMode, CallsItsOwnWay, WithoutGradient, FrozenInPart),
    ],
)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_it_trains_as_the_loop_does(kind: type[Net], grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Native or not."""
    batches = [batch() for _ in range(12)]
    model, results = kind(), []
    for off in (False, True):
        monkeypatch.setitem(globals(), "COUNT", 0)
        monkeypatch.setitem(globals(), "OUTSIDE", torch.ones(4, dtype=DOUBLE))
        twin = copy.deepcopy(model)
        step = step_of(twin, "sgd-momentum")
        torch.manual_seed(1)
        random.seed(1)
        losses = []
        for b in batches:
            with torch.set_grad_enabled(grad):
                if off:
                    with fastnn.disabled():
                        losses.append(step(*b))
                else:
                    losses.append(step(*b))
        results.append(
            (losses, list(twin.state_dict().values()), twin.scale, twin.settings, twin.table, COUNT)
        )
    torch.testing.assert_close(results[0][:2], results[1][:2], rtol=1e-9, atol=1e-9)
    assert results[0][2:] == results[1][2:]


def test_what_it_prints_is_printed_until_it_is_native(capsys: pytest.CaptureFixture[str]) -> None:
    class Prints(Net):
        def forward(self, x: Tensor) -> Tensor:
            print("here")
            return super().forward(x)

    step = recorded(step_of(Prints()), *batch())
    native(step, *batch())
    assert capsys.readouterr().out == 3 * "here\n"


# What changes between steps.


class Reading(Net):
    gain = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.ModuleList([nn.Linear(4, 4, dtype=DOUBLE)])
        self.nothing: Any = None

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


def _both(
    model: nn.Module, change: Callable[[Any], object], *, optimizer: str = "sgd"
) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and losses of steps around a change, and those of the loop."""
    batches, results = [batch() for _ in range(10)], []
    for off in (False, True):
        step = step_of(copy.deepcopy(model), optimizer, lambda x, y: F.cross_entropy(x, y))
        for b in batches[:4]:
            step(*b)
        if not off:
            native(step, *batches[4])
        else:
            with fastnn.disabled():
                step(*batches[4])
        change(step)
        losses = []
        for b in batches[5:]:
            if off:
                with fastnn.disabled():
                    losses.append(step(*b))
            else:
                losses.append(step(*b))
        results.append([*losses, *step.model.parameters()])
    return results[0], results[1]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed(name: str) -> None:
    ours, theirs = _both(Reading(), CHANGES[name])
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_is_noticed(name: str) -> None:
    patch = pytest.MonkeyPatch()

    def change(_: Any) -> None:
        PATCHES[name](patch)

    model, batches, results = Reading(), [batch() for _ in range(10)], []
    for off in (False, True):
        step = step_of(copy.deepcopy(model), "sgd", lambda x, y: F.cross_entropy(x, y))
        try:
            for i, b in enumerate(batches):
                if i == 5:
                    change(step)
                if off:
                    with fastnn.disabled():
                        step(*b)
                else:
                    native(step, *b) if i == 4 else step(*b)
        finally:
            patch.undo()
        results.append(list(step.model.parameters()))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


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

    trainer = Trainer()
    recorded(trainer.step, *batch())
    for _ in range(3):
        trainer.steps += 1
        trainer.model.updates = trainer.steps
        native(trainer.step, *batch())
    before = native(trainer.step, *(fixed := batch()))
    trainer.weight = 0.0
    assert trainer.step(*fixed) == 0.0 != before


def test_what_is_compiled_or_clears_by_itself_is_eager() -> None:
    class Clears(Net):
        def zero_grad(self, set_to_none: bool = True) -> None:
            super().zero_grad(set_to_none)

    compiled = Net()
    compiled.compile(backend="eager")
    for model in (torch.compile(Net(), backend="eager"), compiled, Clears()):
        step = step_of(model)
        with pytest.warns(fastnn.EagerStepWarning, match="is compiled|zero_grad of its own"):
            step(*batch())
        for _ in range(4):
            assert dict(fastnn.explain(step, *batch()).decisions)["train_step"] is not None


def test_a_batch_that_cannot_be_recorded_leaves_others_alone() -> None:
    step = step_of(Net(), native=True)
    x, y = batch()
    recorded(step, x, y)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="native=True"):
            step(x.requires_grad_() * 1, y)
    x = x.detach()
    recorded(step, x[:5], y[:5])
    native(step, x[:5], y[:5])
    native(step, x, y)


def test_evaluation_between_epochs_costs_no_recording() -> None:
    step = recorded(step_of(WithNorms()), *batch())
    for _ in range(3):
        native(step, *batch())
        step.model.eval()
        step.model(batch()[0])
        step.model.train()
        native(step, *batch())


def test_a_batch_of_another_size_is_recorded_beside_the_first() -> None:
    step = recorded(step_of(WithNorms()), *batch(7))
    recorded(step, *batch(9))
    for m in (7, 9, 7):
        native(step, *batch(m))


def test_a_bad_class_changes_nothing() -> None:
    step = recorded(step_of(Net()), *batch())
    x, y = batch()
    y[3] = 4
    before = copy.deepcopy((step.model.state_dict(), step.optimizer.state_dict()))
    with pytest.raises(IndexError, match="Target 4 is out of bounds"):
        step(x, y)
    torch.testing.assert_close((step.model.state_dict(), step.optimizer.state_dict()), before, rtol=0, atol=0)
    native(step, *batch())


def test_why_it_is_not_recorded_is_said_once() -> None:
    step = step_of(Branches())
    with pytest.warns(fastnn.EagerStepWarning, match="and it cannot be recorded: .*a value is read") as seen:
        recorded(step, *batch())
    assert len([w for w in seen if w.category is fastnn.EagerStepWarning]) == 1
    strict = step_of(Branches(), native=True)
    with pytest.raises(RuntimeError, match="native=True, but the step cannot run natively"):
        recorded(strict, *batch())
    before = copy.deepcopy(strict.model.state_dict())
    with pytest.raises(RuntimeError, match="native=True, but the step cannot run natively"):
        strict(*batch())
    torch.testing.assert_close(strict.model.state_dict(), before, rtol=0, atol=0)


# Epochs.


@pytest.mark.parametrize("rates", [False, True])
@pytest.mark.parametrize("kind", [Net, WithNorms])
def test_an_epoch_is_the_loop(kind: type[Net], rates: bool) -> None:
    x, y = torch.randn(60, 6, dtype=DOUBLE), classes_of(60, 4)
    order, lr = torch.randperm(58), torch.linspace(0.1, 0.01, 8).tolist() if rates else None
    model = kind()
    step, twin = (recorded(step_of(copy.deepcopy(model)), x[:8], y[:8]) for _ in range(2))
    seen = fastnn.explain(step.epoch, x, y, 8, order, lr=lr)
    assert ("train_epoch", None) in seen.decisions
    losses = []
    for i, rows in enumerate(order.split(8)):
        if lr is not None:
            for group in twin.optimizer.param_groups:
                group["lr"] = lr[i]
        losses.append(twin(x[rows], y[rows]))
    assert torch.equal(seen.result, torch.stack(losses))
    for p, q in zip(step.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert step.optimizer.param_groups[0]["lr"] == 1e-2


@pytest.mark.parametrize("bad", [-1, 60])
def test_an_epoch_stops_at_a_row_that_is_not_there(bad: int) -> None:
    x, y = torch.randn(60, 6, dtype=DOUBLE), classes_of(60, 4)
    step = recorded(step_of(Net()), x[:8], y[:8])
    order = torch.arange(40)
    order[20] = bad
    before = float(step.optimizer.state[step.model.fc1.weight]["step"])
    with pytest.raises(IndexError, match=f"permutation has the entry {bad} in step 2"):
        step.epoch(x, y, 8, order)
    assert float(step.optimizer.state[step.model.fc1.weight]["step"]) == before + 2


def test_an_epoch_stops_at_a_class_that_is_not_there() -> None:
    x, y = torch.randn(40, 6, dtype=DOUBLE), classes_of(40, 4)
    step = recorded(step_of(Net()), x[:8], y[:8])
    y[20] = 4
    before = float(step.optimizer.state[step.model.fc1.weight]["step"])
    with pytest.raises(IndexError, match="Target 4 is out of bounds"):
        step.epoch(x, y, 8, torch.arange(40))
    assert float(step.optimizer.state[step.model.fc1.weight]["step"]) == before + 2


def test_an_epoch_with_what_torch_runs_is_the_loop() -> None:
    """An op without an instruction."""

    class Odd(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).cumsum(1)

    x, y = torch.randn(40, 6, dtype=DOUBLE), classes_of(40, 4)
    step = recorded(step_of(Odd()), x[:8], y[:8])
    seen = fastnn.explain(step.epoch, x, y, 8)
    assert [d.reason for d in seen.decisions if d.op == "train_step"] == [None] * 5
    assert any("torch runs a part of the step" in str(d.reason) for d in seen.decisions)


def test_rows_of_an_epoch_that_are_not_contiguous() -> None:
    x, y = torch.randn(6, 40, dtype=DOUBLE).t(), classes_of(40, 4)
    step = recorded(step_of(Net()), x[:8], y[:8])
    twin = copy.deepcopy(step)
    losses = step.epoch(x, y, 8, torch.arange(40))
    with fastnn.disabled():
        expected = twin.epoch(x, y, 8, torch.arange(40))
    torch.testing.assert_close(losses, expected, rtol=TOLERANCE, atol=TOLERANCE)
