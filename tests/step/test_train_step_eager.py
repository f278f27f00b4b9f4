"""A step that runs eagerly: its messages, and the state of the model and the optimizer."""

from __future__ import annotations

import contextlib
import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from fastnn import EagerStepWarning
from optimizer_cases import needs_state_begun_late
from train_steps import OPTIMIZERS, TOLERANCE, chain, classes_of, native, reason, recorded

Step = fastnn.TrainStep


def _batch() -> tuple[Tensor, Tensor]:
    return torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)


def _step(make: str = "adam", model: nn.Module | None = None, **options: Any) -> Step:
    model = chain([6, 8, 5]) if model is None else model
    return Step(model, nn.CrossEntropyLoss(), OPTIMIZERS[make](model.parameters()), **options)


def _with_dropout() -> nn.Module:
    return nn.Sequential(*chain([6, 8]), nn.Dropout(0.0), *chain([8, 5]))


def _see(*_: Any) -> None:
    """Change nothing."""


def _watched() -> nn.Module:
    """A model whose steps cannot be native."""
    model = nn.Sequential(*chain([6, 8, 5]))
    model[1].register_forward_hook(_see)
    return model


# What the kernel of chains refuses after reading the optimizer's state, or because of it.


def _freeze_first(step: Any) -> None:
    step.model[0].weight.requires_grad_(False)


def _freeze_last(step: Any) -> None:
    step.model[2].bias.requires_grad_(False)


def _hook(step: Any) -> None:
    step.model[2].bias.register_hook(lambda _: None)


def _foreign(step: Any) -> None:
    step.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})


def _missing(step: Any) -> None:
    step.optimizer = type(step.optimizer)(step.model[0].parameters(), lr=0.1, **_momentum(step))


def _momentum(step: Any) -> dict[str, float]:
    options = step.optimizer.param_groups[0]
    return {"momentum": options["momentum"]} if "momentum" in options else {}


def _transposed(step: Any) -> None:
    step.model[2].weight.data = step.model[2].weight.data.t().contiguous().t()


def _shared_memory(step: Any) -> None:
    step.model[2].bias.data = step.model[2].weight.data.view(-1)[:5]


def _kept_gradient(step: Any) -> None:
    step.keep_grad = True
    step.model[2].weight.grad = torch.zeros(8, 5, dtype=torch.float64).t()


def _differentiable(step: Any) -> None:
    step.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))], "differentiable": True})


REFUSED = (_freeze_first, _freeze_last, _hook, _foreign, _missing, _transposed, _shared_memory)
REFUSED += (_kept_gradient, _differentiable)


def _state(step: Step) -> list[list[str]]:
    params = [p for group in step.optimizer.param_groups for p in group["params"]]
    found = [sorted(step.optimizer.state[p]) if p in step.optimizer.state else ["none"] for p in params]
    assert len(step.optimizer.state) <= len(params)
    return found


@pytest.mark.parametrize("change", REFUSED)
@pytest.mark.parametrize(
    "make",
    ["adam", "adam-amsgrad", "adam-l2", "sgd-momentum", "sgd", "rmsprop", "rmsprop-momentum", "adagrad"],
)
@pytest.mark.parametrize("call", ["step", "epoch"])
def test_a_refused_step_makes_no_state(change: Callable[[Any], None], make: str, call: str) -> None:
    ours = _step(make)
    change(ours)
    theirs = copy.deepcopy(ours)
    x, y = _batch()
    for step in (ours, theirs):
        take = (lambda s: s.epoch(x, y, 7)) if call == "epoch" else (lambda s: s(x, y))
        if step is theirs:
            with fastnn.disabled():
                take(step)
        else:
            take(step)
    assert _state(ours) == _state(theirs)


@pytest.mark.parametrize("change", REFUSED)
def test_what_the_kernel_of_chains_refuses_trains_as_the_loop_does(change: Callable[[Any], None]) -> None:
    """Recorded if possible."""
    ours = _step("sgd-momentum")
    theirs = copy.deepcopy(ours)
    for step in (ours, theirs):
        change(step)
    batches = [_batch() for _ in range(6)]
    losses = [ours(*b) for b in batches]
    with fastnn.disabled():
        expected = [theirs(*b) for b in batches]
    torch.testing.assert_close(losses, expected, rtol=TOLERANCE, atol=TOLERANCE)
    for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=TOLERANCE, atol=TOLERANCE)
    is_native = dict(fastnn.explain(ours, *batches[0]).decisions)["train_step"] is None
    assert is_native == (change is not _hook)


@pytest.mark.parametrize("make", ["adam", "sgd-momentum", "rmsprop-all"])
def test_a_refused_step_that_fails_makes_no_state(make: str) -> None:
    step = _step(make)
    _freeze_last(step)
    with pytest.raises(RuntimeError):
        step(torch.randn(7, 4, dtype=torch.float64), classes_of(7, 5))
    assert len(step.optimizer.state) == 0


def test_a_refused_epoch_on_a_device_makes_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Part of the state exists, and does not fit the kernel."""
    from fastnn.step import epoch_kernel

    model = chain([6, 8, 5], dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters())
    first = model[0].weight
    zeros = torch.zeros(6, 8).t()
    optimizer.state[first] = {"step": torch.tensor(1.0), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
    plan = fastnn.TrainStep(model, nn.CrossEntropyLoss(), optimizer)._runner.planned.find()
    with pytest.raises(Exception, match="exp_avg is not like its parameter"):
        epoch_kernel._states(plan, list(model.parameters()))
    assert list(optimizer.state) == [first]


# Gradients: the loop that the docstring shows begins with model.zero_grad().


@pytest.mark.parametrize("keep_grad", [False, True])
@pytest.mark.parametrize("make", ["adam", "sgd-momentum", "rmsprop", "adagrad"])
def test_gradients_of_what_only_the_optimizer_has(keep_grad: bool, make: str) -> None:
    """They belong to the user: the optimizer uses them in every call."""
    needs_state_begun_late(type(OPTIMIZERS[make](nn.Linear(1, 1).parameters())))
    step = _step(make, keep_grad=keep_grad)
    other = nn.Parameter(torch.ones(3, dtype=torch.float64))
    step.optimizer.add_param_group({"params": [other]})
    other.grad = torch.ones(3, dtype=torch.float64)
    for i in range(3):
        before = other.detach().clone()
        if i == 2:
            step.epoch(*_batch(), 7)
        else:
            assert "parameters that the chain lacks" in reason(step, *_batch())
        assert torch.equal(other.grad, torch.ones(3, dtype=torch.float64))
        assert (other < before).all()
    assert all((p.grad is not None) == keep_grad for p in step.model.parameters())


class WithSpare(nn.Module):
    """A model with a head that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.body = chain([6, 8, 5])
        self.spare = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize("keep_grad", [False, True])
@pytest.mark.parametrize("call", ["step", "epoch", "eager"])
def test_gradients_of_what_the_model_does_not_use(keep_grad: bool, call: str) -> None:
    model = WithSpare()
    optimizer = OPTIMIZERS["adam"](model.body.parameters())
    step = Step(model, nn.CrossEntropyLoss(), optimizer, keep_grad=keep_grad)
    x, y = _batch()
    for new in (False, True, True):
        if new:
            model.late = nn.Linear(2, 2)
        spare = [p for name, p in model.named_parameters() if "body" not in name]
        for p in spare:
            p.grad = torch.ones_like(p)
        if call == "step":
            recorded(step, x, y)
            for p in spare:
                p.grad = torch.ones_like(p)
            native(step, x, y)
        elif call == "epoch":
            step.epoch(x, y, 7)
        else:
            with fastnn.disabled():
                step(x, y)
        assert all(p.grad is None for p in spare)
        assert all((p.grad is not None) == keep_grad for p in model.body.parameters())


def test_a_model_that_lists_its_parameters_itself() -> None:
    class Listing(WithSpare):
        def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
            return self.body.named_parameters(*args, **kwargs)

    model = Listing()
    step = Step(model, nn.CrossEntropyLoss(), OPTIMIZERS["adam"](model.parameters()))
    model.spare.weight.grad = torch.ones(2, 3)
    for _ in range(5):
        step(*_batch())
        assert model.spare.weight.grad is not None
    native(step, *_batch())


def test_parameters_that_appear_are_seen_by_an_eager_step() -> None:
    """The list of parameters is cached for as long as it is valid."""
    model = _with_dropout()
    step = _step("sgd", model, max_norm=1e-3)
    x, y = _batch()
    for change in range(4):
        if change == 1:
            model.append(nn.Linear(5, 5, dtype=torch.float64))
            step.optimizer.add_param_group({"params": list(model[-1].parameters())})
        if change == 2:
            model[0].weight = nn.Parameter(torch.randn_like(model[0].weight))
        if change == 3:
            model[0].register_parameter("spare", nn.Parameter(torch.zeros(2)))
            model[0].spare.grad = torch.ones(2)
        step.keep_grad = True
        reason(step, x, y)
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert torch.cat([g.reshape(-1) for g in grads]).norm() < 1.001e-3
        assert len(grads) == len(list(model.parameters())) - (change == 3)


# Its messages.


def _warnings(call: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught if w.category is EagerStepWarning]


@pytest.mark.parametrize("take", ["step", "epoch", "explain"])
def test_the_warning_points_at_the_caller(take: str) -> None:
    x, y = _batch()
    step = _step("adam", _watched())
    calls = {
        "step": lambda: step(x, y),
        "epoch": lambda: step.epoch(x, y, len(x)),
        "explain": lambda: fastnn.explain(step, x, y),
    }
    with pytest.warns(EagerStepWarning) as seen:
        calls[take]()
    assert seen[0].filename == __file__


def test_it_warns_once_for_each_reason() -> None:
    x, y = _batch()
    step = _step("adam", _watched())
    with pytest.warns(EagerStepWarning, match=r"runs eagerly: .*hook.*filterwarnings\(\"ignore\"") as seen:
        step(x, y)
    assert seen[0].filename == __file__
    assert issubclass(EagerStepWarning, UserWarning)
    for _ in range(3):
        assert _warnings(lambda: step(x, y)) == []
    step.loss = nn.MultiMarginLoss()
    assert len(_warnings(lambda: step(x, y))) == 1
    assert len(_warnings(lambda: _step("adam", _watched())(x, y))) == 1
    for twin in (copy.deepcopy(step), pickle.loads(pickle.dumps(step))):
        assert len(_warnings(lambda twin=twin: twin(x, y))) == 1


def test_a_native_step_says_nothing() -> None:
    step = _step()
    assert _warnings(lambda: [step(*_batch()) for _ in range(3)]) == []
    assert _warnings(lambda: step.epoch(*_batch(), 3)) == []


def test_an_epoch_warns_once() -> None:
    step = _step("adam", _watched())
    x, y = torch.randn(21, 6, dtype=torch.float64), classes_of(21, 5)
    assert len(_warnings(lambda: step.epoch(x, y, 4))) == 1
    assert _warnings(lambda: step.epoch(x, y, 4)) == []


def test_switching_it_off_gives_no_warning() -> None:
    for native_only in (False, True):
        step = _step("adam", _watched(), native=native_only)
        with fastnn.disabled():
            assert _warnings(lambda step=step: step(*_batch())) == []


def test_a_warning_made_an_error_changes_nothing() -> None:
    step = _step("adam", _watched())
    before = copy.deepcopy(step.model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error", EagerStepWarning)
        for _ in range(2):
            with pytest.raises(EagerStepWarning):
                step(*_batch())
    assert all(torch.equal(before[k], v) for k, v in step.model.state_dict().items())


def _taken(call: Callable[[], object], step: Step) -> None:
    """Check that `call` raises, and nothing has changed."""
    step.model[0].weight.grad = grad = torch.ones_like(step.model[0].weight)
    before = copy.deepcopy((step.model.state_dict(), step.optimizer.state_dict()))
    generator = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="native=True, but the step cannot run natively: "):
        call()
    after = step.model.state_dict(), step.optimizer.state_dict()
    assert all(torch.equal(before[0][k], v) for k, v in after[0].items())
    assert before[1]["state"].keys() == after[1]["state"].keys()
    assert step.model[0].weight.grad is grad
    assert torch.equal(grad, torch.ones_like(grad))
    assert torch.equal(generator, torch.get_rng_state())


def _hook_module(step: Any) -> None:
    step.model[1].register_forward_pre_hook(_see)


def _hook_optimizer(step: Any) -> None:
    step.optimizer.register_step_post_hook(_see)


@pytest.mark.parametrize("change", [_hook, _hook_module, _hook_optimizer])
@pytest.mark.parametrize("make", ["adam", "rmsprop", "adagrad"])
def test_native_or_an_error(change: Callable[[Any], None], make: str) -> None:
    step = _step(make, native=True)
    change(step)
    x, y = _batch()
    _taken(lambda: step(x, y), step)
    _taken(lambda: step.epoch(x, y, 3, torch.arange(7)), step)
    step.native = False
    assert len(_warnings(lambda: step(x, y))) == 1


def test_native_asked_for_and_done() -> None:
    step = _step(native=True)
    native(step, *_batch())
    assert "native=True" in repr(step)
    with pytest.raises(TypeError, match="native must be a bool, got int"):
        step.native = 1  # type: ignore[assignment]
    model = _watched()
    step, (x, y) = _step("adam", model, native=True), _batch()
    _taken(lambda: step(x, y), step)


def test_the_reason_of_twin_critics() -> None:
    """One optimizer for two models: the message says what to do instead."""
    first, second = chain([6, 8, 1]), chain([6, 8, 1])
    optimizer = torch.optim.Adam([*first.parameters(), *second.parameters()])
    step = Step(first, nn.MSELoss(), optimizer)
    x, y = torch.randn(7, 6, dtype=torch.float64), torch.randn(7, 1, dtype=torch.float64)
    assert "give each model an optimizer and a TrainStep of its own" in reason(step, x, y)
    native(recorded(step, x, y), x, y)


def test_eager_steps_are_those_of_the_loop() -> None:
    model = _with_dropout()
    twin = copy.deepcopy(model)
    step = _step("adam-l2", model, max_norm=0.1)
    optimizer = OPTIMIZERS["adam-l2"](twin.parameters())
    for i in range(4):
        x, y = _batch()
        with torch.set_grad_enabled(i != 2):
            loss = step(x, y)
        assert not loss.requires_grad
        twin.zero_grad()
        expected = nn.functional.cross_entropy(twin(x), y)
        expected.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        optimizer.step()
        torch.testing.assert_close(loss, expected.detach(), rtol=TOLERANCE, atol=TOLERANCE)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=TOLERANCE, atol=TOLERANCE)


class ClearsByItself(nn.Sequential):
    calls = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.calls += 1
        super().zero_grad(set_to_none)


def test_a_zero_grad_of_the_models_own_is_called() -> None:
    model = ClearsByItself(nn.Linear(3, 2))
    step = fastnn.TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    step(torch.ones(4, 3), torch.ones(4, 2))
    assert model.calls == 1


def test_a_zero_grad_that_is_put_on_the_model_is_called() -> None:
    model, calls = nn.Sequential(nn.Linear(3, 2)), []
    step = fastnn.TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    step(torch.ones(4, 3), torch.ones(4, 2))
    model.zero_grad = lambda *_: calls.append(1)  # type: ignore[method-assign]
    step(torch.ones(4, 3), torch.ones(4, 2))
    assert calls == [1]


@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, fastnn.nn.CrossEntropyLoss])
def test_uint8_classes_mean_the_same_in_an_eager_step(kind: Any) -> None:
    """Torch refuses them with some options, and reads -100 as 156."""
    losses = []
    for off in (False, True):
        torch.manual_seed(0)
        model = chain([6, 5])
        loss = kind(torch.rand(5, dtype=torch.float64), label_smoothing=0.1)
        step = Step(model, loss, torch.optim.SGD(model.parameters(), lr=0.1))
        x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5).to(torch.uint8)
        with fastnn.disabled() if off else contextlib.nullcontext():
            losses.append(torch.stack([step(x, y) for _ in range(3)]))
    torch.testing.assert_close(*losses)


def test_a_step_that_is_refused_again_and_again_is_not_tried_each_time() -> None:
    """The pause doubles; one odd batch costs the next one nothing, and native=True checks every time."""
    x, y = _batch()
    step = _step()
    assert reason(step, x.clone().requires_grad_(), y) is not None
    native(step, x, y)
    hook = step.model[0].weight.register_hook(lambda grad: grad)
    for _ in range(20):
        assert "hook" in reason(step, x, y)
    hook.remove()
    waited = next(i for i in range(100) if fastnn.explain(step, x, y).decisions[0].reason is None)
    assert 0 < waited <= 63
    native(step, x, y)
    strict = _step(native=True)
    hook = strict.model[0].weight.register_hook(lambda grad: grad)
    for _ in range(5):
        with pytest.raises(RuntimeError, match="hook"):
            strict(x, y)
    hook.remove()
    native(strict, x, y)


def test_an_epoch_looks_again() -> None:
    """A reason for which single steps were refused is checked again for an epoch."""
    x, y = _batch()
    model = chain([6, 8, 5])
    step = _step("adam", model)
    hook = model[0].weight.register_hook(lambda grad: grad)
    watched = model[0].register_forward_hook(lambda *_: None)
    for _ in range(6):
        assert "hook" in reason(step, x, y)
    watched.remove()
    for _ in range(12):
        assert "hook" in reason(step, x, y)
    hook.remove()
    decisions = fastnn.explain(step.epoch, x, y, 3).decisions
    assert [d.reason for d in decisions if d.op == "train_epoch"] == [None, None]


def test_an_option_that_the_loss_lacks_is_torchs_error() -> None:
    """As in a loss unpickled from an older torch."""
    x, y = _batch()
    for option in ("reduction", "ignore_index", "label_smoothing"):
        step = _step()
        delattr(step.loss, option)
        with pytest.raises(AttributeError, match=option):
            step(x, y)
