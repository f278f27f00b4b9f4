"""A training step as one call: with the numbers of the eager step, on every CPU variant."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import fastnn
from train_steps import (
    ACTIVATIONS,
    ELEMENTWISE,
    LOSSES,
    OPTIMIZERS,
    TOLERANCE,
    Optimizer,
    chain,
    classes_of,
    compare,
    eager_step,
    model_for,
    native,
    reason,
    started,
    target_for,
)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize(
    "options",
    [{}, {"max_norm": 0.05}, {"keep_grad": True}, {"max_norm": 0.05, "keep_grad": True}],
    ids=["plain", "clip", "grad", "clip-grad"],
)
def test_every_optimizer(make: Optimizer, options: dict[str, Any]) -> None:
    batches = [(torch.randn(13, 20, dtype=torch.float64), classes_of(13, 5)) for _ in range(4)]
    compare(chain([20, 33, 17, 5]), nn.CrossEntropyLoss(), make, batches, TOLERANCE, **options)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("last", [False, True], ids=["inner", "last"])
def test_every_activation(isa: str, activation: str, last: bool) -> None:
    batches = [
        (torch.randn(9, 7, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)) for _ in range(3)
    ]
    model = chain([7, 17, 8, 3], activation, last=last)
    compare(model, nn.MSELoss(), OPTIMIZERS["sgd"], batches, TOLERANCE)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "sizes", [[1, 1], [3, 2], [15, 16, 17], [31, 33, 7, 9], [130, 65, 47, 10], [784, 28, 10]], ids=str
)
@pytest.mark.parametrize("batch", [1, 2, 33])
def test_odd_sizes_train_as_in_torch(isa: str, sizes: list[int], batch: int, bias: bool) -> None:
    batches = [
        (torch.randn(batch, sizes[0], dtype=torch.float64), classes_of(batch, sizes[-1])) for _ in range(3)
    ]
    compare(chain(sizes, bias=bias), nn.CrossEntropyLoss(), OPTIMIZERS["adam"], batches, TOLERANCE)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(label_smoothing=0.2, ignore_index=2, reduction="sum"),
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0, 0.1, 3.0], dtype=torch.float64)),
        fastnn.nn.CrossEntropyLoss(z_loss=0.1, ignore_index=0),
        F.cross_entropy,
        fastnn.functional.cross_entropy,
    ],
    ids=["smoothed", "weighted", "z-loss", "torch function", "fastnn function"],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_cross_entropy_options(loss: Any, dtype: torch.dtype) -> None:
    batches = [(torch.randn(40, 6, dtype=torch.float64), classes_of(40, 5).to(dtype)) for _ in range(3)]
    compare(chain([6, 8, 5]), loss, OPTIMIZERS["adam"], batches, TOLERANCE)


@pytest.mark.parametrize("make", ["rmsprop", "rmsprop-momentum", "rmsprop-centered", "adagrad-decay"])
def test_other_optimizers_on_every_variant(isa: str, make: str) -> None:
    batches = [(torch.randn(40, 31, dtype=torch.float64), classes_of(40, 7)) for _ in range(3)]
    compare(chain([31, 65, 17, 7]), nn.CrossEntropyLoss(), OPTIMIZERS[make], batches, TOLERANCE)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_versions_of_what_is_written(make: Optimizer) -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = started(chain([6, 8, 5]), nn.CrossEntropyLoss(), make, x, y)
    written = [*step.model.parameters(), *(t for s in step.optimizer.state.values() for t in s.values())]
    before = [t._version for t in written]
    native(step, x, y)
    assert all(t._version > version for t, version in zip(written, before, strict=True))


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.MSELoss(reduction="sum"), F.mse_loss])
def test_squared_error_trains_as_in_torch(isa: str, loss: Any) -> None:
    batches = [
        (torch.randn(300, 4, dtype=torch.float64), torch.randn(300, 19, dtype=torch.float64))
        for _ in range(3)
    ]
    compare(chain([4, 8, 19], "tanh"), loss, OPTIMIZERS["adam"], batches, TOLERANCE, max_norm=0.5)


def _slow(parameters: Any) -> torch.optim.Optimizer:
    """Small, for sums over a batch."""
    return torch.optim.SGD(parameters, lr=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_as_in_torch(isa: str, name: str, reduction: str, dtype: torch.dtype) -> None:
    """Float32 steps round differently; each step starts from the errors of the previous ones."""
    case = LOSSES[name]
    for n in (1, 5, 19):
        loss = case.make(n, reduction=reduction).to(dtype)
        sizes = (1, 2, 7, 33, 300, 7)
        batches = [(torch.randn(m, 4, dtype=dtype), target_for(case, m, n, dtype)) for m in sizes]
        if name == "nll-options":
            for _, y in batches:
                y[0] = 0  # not all may be ignored: the loss would be NaN
        tolerance = TOLERANCE if dtype is torch.float64 else 2e-5
        compare(model_for(case, [4, 8, n], dtype), loss, _slow, batches, tolerance, keep_grad=True)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (F.l1_loss, "l1"),
        (F.smooth_l1_loss, "smooth-l1"),
        (F.huber_loss, "huber"),
        (F.binary_cross_entropy_with_logits, "bce"),
        (F.nll_loss, "nll"),
        (F.cross_entropy, "probabilities"),
        (fastnn.functional.cross_entropy, "probabilities"),
        (fastnn.nn.CrossEntropyLoss(z_loss=0.1, label_smoothing=0.1), "probabilities"),
    ],
)
def test_losses_that_are_functions(function: Any, name: str) -> None:
    case = LOSSES[name]
    batches = [(torch.randn(m, 4, dtype=torch.float64), target_for(case, m, 5)) for m in (7, 33, 1)]
    compare(model_for(case, [4, 8, 5]), function, OPTIMIZERS["adam"], batches, TOLERANCE, max_norm=0.5)


def test_a_log_softmax_along_another_dimension() -> None:
    model = model_for(LOSSES["nll"], [4, 8, 5])
    step = fastnn.TrainStep(model, nn.NLLLoss(), OPTIMIZERS["sgd"](model.parameters()))
    x, y = torch.randn(7, 4, dtype=torch.float64), classes_of(7, 5)
    native(step, x, y)
    model[-1].dim = 0
    assert "is not along the last of two dimensions" in reason(step, x, y)


SPECIAL = (float("nan"), float("inf"), -float("inf"), 0.0, 0.25, 1.0, -1.0, 200.0, -200.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_nan_and_infinity_pass_as_in_torch(isa: str, name: str, dtype: torch.dtype) -> None:
    """Each output, which is the bias, with each target: NaN, infinity, and equal values."""
    n = 37
    loss, model = ELEMENTWISE[name].make(n).to(dtype), nn.Linear(1, n, dtype=dtype)
    step = fastnn.TrainStep(model, loss, torch.optim.SGD(model.parameters(), lr=0.0), keep_grad=True)
    x = torch.ones(1, 1, dtype=dtype)
    for output in SPECIAL:
        with torch.no_grad():
            model.weight.zero_()
            model.bias.fill_(output)
        logits = model.bias.detach().clone()[None].requires_grad_()
        for target in SPECIAL:
            y = torch.full((1, n), target, dtype=dtype)
            expected = loss(logits, y)
            (gradient,) = torch.autograd.grad(expected, logits)
            with torch.no_grad():
                model.weight.zero_()
                model.bias.fill_(output)
            value = native(step, x, y)
            assert model.bias.grad is not None
            tolerance = {"rtol": 1e-5 if dtype is torch.float32 else 1e-12, "atol": 1e-30, "equal_nan": True}
            torch.testing.assert_close(value, expected.detach(), **tolerance)
            torch.testing.assert_close(model.bias.grad[None], gradient, **tolerance)


def test_everything_is_read_at_each_call() -> None:
    """A schedule, a loaded state, changed options."""
    model = chain([6, 8, 5])
    twin = copy.deepcopy(model)
    ours, theirs = (torch.optim.Adam(m.parameters(), lr=1e-2) for m in (model, twin))
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20) for o in (ours, theirs)]
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), ours)
    for i in range(12):
        x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
        step(x, y)
        eager_step(twin, F.cross_entropy, theirs, x, y)
        for schedule in schedules:
            schedule.step()
        if i == 4:
            ours.load_state_dict(copy.deepcopy(ours.state_dict()))
        if i == 6:
            for optimizer in (ours, theirs):
                optimizer.param_groups[0]["weight_decay"] = 0.3
                optimizer.param_groups[0]["betas"] = (0.5, 0.6)
        if i == 8:
            for m in (model, twin):
                m.load_state_dict({k: v * 0.5 for k, v in m.state_dict().items()})
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=TOLERANCE, atol=TOLERANCE)
    native(step, x, y)


@pytest.mark.parametrize(
    ("optimizer", "one", "common"),
    [
        (fastnn.optim.SGD, {}, {"momentum": 0.5}),
        (torch.optim.RMSprop, {"momentum": 0.5, "alpha": 0.9}, {"centered": True}),
        (fastnn.optim.Adagrad, {"lr_decay": 0.2}, {"weight_decay": 0.1}),
    ],
)
def test_several_groups_keep_their_options(
    optimizer: Any, one: dict[str, Any], common: dict[str, Any]
) -> None:
    def make(parameters: Any) -> torch.optim.Optimizer:
        first, *rest = parameters
        result: torch.optim.Optimizer = optimizer(
            [{"params": rest, "lr": 0.2, **one}, {"params": [first]}], lr=0.1, **common
        )
        return result

    batches = [(torch.randn(9, 7, dtype=torch.float64), classes_of(9, 3)) for _ in range(4)]
    compare(chain([7, 17, 3]), nn.CrossEntropyLoss(), make, batches, TOLERANCE)


@pytest.mark.parametrize("images", [torch.uint8, torch.float64])
def test_images_train_as_in_torch(isa: str, images: torch.dtype) -> None:
    model = nn.Sequential(nn.Flatten(), *chain([6 * 7, 9, 4]))
    twin = copy.deepcopy(model)
    make = OPTIMIZERS["sgd"]
    theirs = make(twin.parameters())
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), make(model.parameters()), mean=0.13, std=0.31)
    for _ in range(3):
        x, y = torch.randint(256, (5, 6, 7), dtype=torch.uint8), classes_of(5, 4)
        normalised = (x.double() / 255 - 0.13) / 0.31
        native(step, x if images is torch.uint8 else normalised, y)
        eager_step(twin, F.cross_entropy, theirs, normalised, y)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=TOLERANCE, atol=TOLERANCE)


def test_images_run_eagerly_too() -> None:
    model = nn.Sequential(nn.Flatten(), *chain([12, 9, 4]), nn.Dropout(0.0))
    twin = copy.deepcopy(model)
    step = fastnn.TrainStep(
        model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"](model.parameters()), mean=0.1, std=0.3
    )
    x, y = torch.randint(256, (5, 3, 4), dtype=torch.uint8), classes_of(5, 4)
    assert "Dropout" in reason(step, x, y)
    eager_step(twin, F.cross_entropy, OPTIMIZERS["sgd"](twin.parameters()), (x.double() / 255 - 0.1) / 0.3, y)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=TOLERANCE, atol=TOLERANCE)


def test_strided_targets() -> None:
    x, wide = torch.randn(9, 20, dtype=torch.float64), torch.randn(18, 10, dtype=torch.float64)
    compare(chain([20, 33, 5]), nn.MSELoss(), OPTIMIZERS["sgd"], [(x, wide[::2, 1:6])], TOLERANCE)
    classes = torch.randint(5, (9, 3))
    compare(chain([20, 33, 5]), nn.CrossEntropyLoss(), OPTIMIZERS["sgd"], [(x, classes[:, 1])], TOLERANCE)


@pytest.mark.parametrize(
    ("loss", "target", "copies"),
    [
        (nn.CrossEntropyLoss(), torch.arange(18) % 5, 0),
        (nn.CrossEntropyLoss(), (torch.arange(18) % 5).to(torch.uint8), 0),
        (nn.MSELoss(), torch.randn(18, 5), 1),
    ],
    ids=["int64", "uint8", "mse"],
)
def test_strided_classes_are_read_where_they_are(
    loss: nn.Module, target: Tensor, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = torch.randn(9, 20), target[::2]
    step = started(chain([20, 33, 5]).float(), loss, OPTIMIZERS["sgd"], x, y)
    made: list[Tensor] = []
    original = torch.Tensor.contiguous
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda t: (made.append(t), original(t))[1])
    native(step, x, y)
    assert len([t for t in made if t.shape == y.shape]) == copies


@pytest.mark.parametrize(
    "weight",
    [torch.ones(5, 2, dtype=torch.float64)[:, 0], torch.ones(1, dtype=torch.float64).expand(5)],
    ids=["strided", "expanded"],
)
def test_strided_class_weights_run_eagerly(weight: Tensor) -> None:
    model, loss = chain([6, 8, 5]), nn.CrossEntropyLoss(weight=torch.ones(5, dtype=torch.float64))
    step = fastnn.TrainStep(model, loss, OPTIMIZERS["sgd"](model.parameters()))
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    native(step, x, y)
    loss.weight = weight
    assert reason(step, x, y) == "the class weights are not contiguous"


def test_strided_and_varying_batches() -> None:
    wide = torch.randn(40, 60, dtype=torch.float64)
    inputs = [wide[:9, :20], wide[::2, 5:45:2], wide.t()[:20, :20], wide[:, 1:21], wide[:1, :20]]
    batches = [(x, classes_of(len(x), 5)) for x in inputs]
    compare(chain([20, 33, 5]), nn.CrossEntropyLoss(), OPTIMIZERS["sgd"], batches, TOLERANCE)


def test_a_class_out_of_range_changes_nothing() -> None:
    model = chain([6, 8, 5])
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = started(model, nn.CrossEntropyLoss(), OPTIMIZERS["adam"], x, y)
    before = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
    y[3] = 5
    with pytest.raises(IndexError, match="Target 5 is out of bounds"):
        step(x, y)
    after = (model.state_dict(), step.optimizer.state_dict())
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_an_ignored_batch_gives_nan() -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), torch.full((7,), -100)
    model = chain([6, 8, 5])
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"](model.parameters()))
    assert native(step, x, y).isnan()


def test_nan_and_infinity_flow() -> None:
    for bad in (float("nan"), float("inf")):
        model = chain([6, 8, 5])
        x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
        x[2, 3] = bad
        step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"](model.parameters()))
        assert native(step, x, y).isnan()
        assert model[0].weight.isnan().any()


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.5}], ids=["plain", "clip"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200], ids=str)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_nan_and_infinity_in_a_gradient(make: Optimizer, bad: float, options: dict[str, Any]) -> None:
    """They propagate as in torch's formulas; squares of 1e200 are infinite."""
    batches = [
        (torch.randn(7, 6, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)) for _ in range(3)
    ]
    batches[1][1][2, 3] = bad
    compare(chain([6, 8, 5], "tanh"), nn.MSELoss(), make, batches, TOLERANCE, equal_nan=True, **options)


def test_a_dead_unit_does_not_leave_subnormals(isa: str) -> None:
    """Moments decay to the smallest subnormal and would stay there, at several times the cost."""
    x, y = torch.randn(7, 6), classes_of(7, 5)
    step = started(chain([6, 8, 5], dtype=torch.float32), nn.CrossEntropyLoss(), OPTIMIZERS["adam"], x, y)
    weight, bias = step.model[0].weight, step.model[0].bias
    with torch.no_grad():
        weight[3], bias[3] = 0.0, -1.0
    first = step.optimizer.state[weight]["exp_avg"]
    first[3] = 1e-40
    native(step, x, y)
    assert (first[3] == 0).all()
    assert sum([1e-310]) / 2 > 0  # the thread's own arithmetic is unchanged


def test_gradients_of_before_are_dropped() -> None:
    model = chain([6, 8, 5])
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    compared = copy.deepcopy(model)
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"](model.parameters()))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    native(step, x, y)
    eager_step(compared, F.cross_entropy, OPTIMIZERS["sgd"](compared.parameters()), x, y)
    for p, q in zip(model.parameters(), compared.parameters(), strict=True):
        assert p.grad is None
        torch.testing.assert_close(p, q, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_backward_across_the_update_is_refused() -> None:
    model = chain([6, 8, 5])
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"](model.parameters()))
    output = model(x).sum()
    native(step, x, y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


def _torch_saved(step: fastnn.TrainStep) -> fastnn.TrainStep:
    memory = io.BytesIO()
    torch.save(step, memory)
    memory.seek(0)
    loaded: fastnn.TrainStep = torch.load(memory, weights_only=False)
    return loaded


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda step: pickle.loads(pickle.dumps(step)), _torch_saved]
)
def test_copies_and_pickles(copied: Callable[[fastnn.TrainStep], fastnn.TrainStep]) -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    options = {"max_norm": 0.5, "keep_grad": True, "mean": 0.1, "std": 0.2}
    step = started(chain([6, 8, 5]), nn.CrossEntropyLoss(), OPTIMIZERS["adam"], x, y, **options)
    twin = copied(step)
    assert {name: getattr(twin, name) for name in options} == options
    assert twin.model is not step.model
    assert all(
        p is q for p, q in zip(twin.model.parameters(), twin.optimizer.param_groups[0]["params"], strict=True)
    )
    for _ in range(3):
        assert torch.equal(native(twin, x, y), native(step, x, y))
    assert all(
        torch.equal(p, q) for p, q in zip(step.model.parameters(), twin.model.parameters(), strict=True)
    )
    before = copy.deepcopy(step.model.state_dict())
    native(twin, x, y)
    torch.testing.assert_close(step.model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.5, "keep_grad": True}], ids=["plain", "clip-grad"])
@pytest.mark.parametrize("images", [torch.uint8, torch.float32], ids=str)
def test_nothing_is_allocated_but_the_loss(images: torch.dtype, options: dict[str, Any]) -> None:
    x, y = torch.randint(256, (64, 784), dtype=torch.uint8).to(images), classes_of(64, 10)
    model = chain([784, 28, 10], dtype=torch.float32)
    step = started(model, nn.CrossEntropyLoss(), OPTIMIZERS["adam"], x, y, **options)
    step(x, y)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        losses = [step(x, y) for _ in range(3)]
    named = ("aten::empty_like", "fastnn::train_step")  # delimits the events looked for
    events = [event for event in seen.events() or () if event.name not in named]
    assert [(event.name, event.cpu_memory_usage) for event in events] == 3 * [("aten::empty_strided", 4)]
    assert torch.stack(losses).isfinite().all()


def test_memory_does_not_grow() -> None:
    resource = pytest.importorskip("resource")
    x, y = torch.randn(64, 784), classes_of(64, 10)
    model = chain([784, 28, 10], dtype=torch.float32)
    step = started(model, nn.CrossEntropyLoss(), OPTIMIZERS["adam"], x, y)
    for _ in range(50):
        step(x, y)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(500):
        step(x, y)
    # One batch of images kept in each call would be 100 MB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024
