"""A training step as one call: the numbers of the eager step, on every CPU variant."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnn
from fastnn import _backend

ACTIVATIONS = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
}

Optimizer = Callable[[Any], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Optimizer] = {
    "adam": lambda p: fastnn.optim.Adam(p, lr=1e-2),
    "adam-l2": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1, betas=(0.8, 0.99), eps=1e-3),
    "adam-amsgrad": lambda p: fastnn.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: fastnn.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adam-maximize": lambda p: torch.optim.AdamW(p, lr=1e-2, maximize=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd-momentum": lambda p: fastnn.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
}


def chain(
    sizes: Sequence[int],
    activation: str = "relu",
    *,
    last: bool = False,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    modules: list[nn.Module] = []
    for k, n in pairwise(sizes):
        modules += [nn.Linear(k, n, bias=bias, dtype=dtype), ACTIVATIONS[activation]()]
    return nn.Sequential(*(modules if last else modules[:-1]))


def eager_step(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    max_norm: float | None = None,
) -> Tensor:
    optimizer.zero_grad()
    value = loss(model(x), y)
    value.backward()
    if max_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return value.detach()


def native(step: fastnn.TrainStep, x: Tensor, y: Tensor) -> Tensor:
    """Take a step that must run natively."""
    seen = fastnn.explain(step, x, y)
    assert [d for d in seen.decisions if d.op == "train_step"] == [("train_step", None)]
    result: Tensor = seen.result
    return result


def reason(step: fastnn.TrainStep, x: Tensor, y: Tensor) -> str:
    """Why a step ran eagerly."""
    decisions = fastnn.explain(step, x, y).decisions
    why = next(d.reason for d in decisions if d.op == "train_step")
    assert why is not None
    return why


def started(
    model: nn.Module, loss: Any, make: Optimizer, x: Tensor, y: Tensor, **options: Any
) -> fastnn.TrainStep:
    """A step whose optimizer has its state."""
    step = fastnn.TrainStep(model, loss, make(model.parameters()), **options)
    step(x, y)
    return step


def classes_of(m: int, n: int) -> Tensor:
    return torch.randint(n, (m,))


def compare(
    model: nn.Module,
    loss: Any,
    make: Optimizer,
    batches: Sequence[tuple[Tensor, Tensor]],
    tolerance: float,
    **options: Any,
) -> None:
    """Train a model natively and its copy with torch: losses, parameters and states must agree."""
    twin = copy.deepcopy(model)
    theirs = make(twin.parameters())
    step = fastnn.TrainStep(model, loss, make(model.parameters()), **options)
    for x, y in batches:
        ours = native(step, x, y)
        expected = eager_step(twin, loss, theirs, x, y, options.get("max_norm"))
        assert ours.shape == ()
        assert not ours.requires_grad
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
            if options.get("keep_grad"):
                torch.testing.assert_close(p.grad, q.grad, rtol=tolerance, atol=tolerance)
            else:
                assert p.grad is None
            for key, value in theirs.state[q].items():
                if isinstance(value, Tensor):
                    torch.testing.assert_close(
                        step.optimizer.state[p][key], value, rtol=tolerance, atol=tolerance
                    )


# In float64 both paths agree to rounding, which Adam enlarges where a gradient is small against eps.
TOLERANCE = 1e-9


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
def test_odd_sizes(isa: str, sizes: list[int], batch: int, bias: bool) -> None:
    batches = [
        (torch.randn(batch, sizes[0], dtype=torch.float64), classes_of(batch, sizes[-1])) for _ in range(3)
    ]
    compare(chain(sizes, bias=bias), nn.CrossEntropyLoss(), OPTIMIZERS["adam"], batches, 1e-7)


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


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.MSELoss(reduction="sum"), F.mse_loss])
def test_squared_error(isa: str, loss: Any) -> None:
    batches = [
        (torch.randn(300, 4, dtype=torch.float64), torch.randn(300, 19, dtype=torch.float64))
        for _ in range(3)
    ]
    compare(chain([4, 8, 19], "tanh"), loss, OPTIMIZERS["adam"], batches, TOLERANCE, max_norm=0.5)


def test_float32_is_as_exact_as_torchs(isa: str) -> None:
    model = chain([784, 128, 10], dtype=torch.float32)
    twin, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    make = OPTIMIZERS["sgd-momentum"]
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), make(model.parameters()))
    optimizers = [make(m.parameters()) for m in (twin, exact)]
    for _ in range(10):
        x, y = torch.randn(64, 784), classes_of(64, 10)
        native(step, x, y)
        eager_step(twin, F.cross_entropy, optimizers[0], x, y)
        eager_step(exact, F.cross_entropy, optimizers[1], x.double(), y)
    for ours, theirs, p in zip(model.parameters(), twin.parameters(), exact.parameters(), strict=True):
        allowed = 3 * (theirs - p).norm() + torch.finfo(torch.float32).eps * p.norm()
        assert (ours - p).norm() <= allowed


def test_gradients_are_the_same_through_every_dtype_of_state() -> None:
    """All options read at each call: a schedule, a loaded state, changed options."""
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


def test_several_groups() -> None:
    def make(parameters: Any) -> torch.optim.Optimizer:
        first, *rest = parameters
        return fastnn.optim.SGD([{"params": rest, "lr": 0.2}, {"params": [first]}], lr=0.1, momentum=0.5)

    batches = [(torch.randn(9, 7, dtype=torch.float64), classes_of(9, 3)) for _ in range(4)]
    compare(chain([7, 17, 3]), nn.CrossEntropyLoss(), make, batches, TOLERANCE)


@pytest.mark.parametrize("images", [torch.uint8, torch.float64])
def test_images(isa: str, images: torch.dtype) -> None:
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


def test_a_traced_forward() -> None:
    model = Written()
    batches = [
        (torch.randn(9, 7, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)) for _ in range(3)
    ]
    compare(model, nn.MSELoss(), OPTIMIZERS["adam"], batches, TOLERANCE, max_norm=0.5)


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(7, 16, dtype=torch.float64)
        self.fc2 = nn.Linear(16, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))


def test_strided_and_varying_batches() -> None:
    wide = torch.randn(40, 60, dtype=torch.float64)
    inputs = [wide[:9, :20], wide[::2, 5:45:2], wide.t()[:20, :20], wide[:, 1:21], wide[:1, :20]]
    batches = [(x, classes_of(len(x), 5)) for x in inputs]
    compare(chain([20, 33, 5]), nn.CrossEntropyLoss(), OPTIMIZERS["sgd"], batches, TOLERANCE)


@pytest.mark.parametrize(("sizes", "batch"), [([40, 605, 301, 33], 65), ([785, 512, 10], 128)], ids=str)
@pytest.mark.parametrize("options", [{}, {"max_norm": 0.1}], ids=["plain", "clip"])
@pytest.mark.parametrize(
    ("dtype", "make"),
    [
        (torch.uint8, OPTIMIZERS["adam"]),
        (torch.float32, OPTIMIZERS["adam-amsgrad"]),
        (torch.float32, OPTIMIZERS["adamw"]),
        (
            torch.float32,
            lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True, weight_decay=0.1, maximize=True),
        ),
    ],
)
def test_bits_do_not_depend_on_threads(
    sizes: list[int], batch: int, options: dict[str, Any], dtype: torch.dtype, make: Optimizer
) -> None:
    images = torch.randint(256, (batch, sizes[0]), dtype=torch.uint8)
    x, y = images if dtype is torch.uint8 else images / 255, classes_of(batch, sizes[-1])
    start = chain(sizes, "gelu", dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5, 2):
            torch.set_num_threads(threads)
            model = copy.deepcopy(start)
            step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), make(model.parameters()), **options)
            losses = [native(step, x, y) for _ in range(4)]
            results.append([torch.stack(losses), *(p.detach() for p in model.parameters())])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


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


def test_a_dead_unit_does_not_leave_subnormals(isa: str) -> None:
    """Moments decay to the smallest subnormal and would stay there, at a multiple of the time."""
    x, y = torch.randn(7, 6), classes_of(7, 5)
    step = started(chain([6, 8, 5], dtype=torch.float32), nn.CrossEntropyLoss(), OPTIMIZERS["adam"], x, y)
    weight, bias = step.model[0].weight, step.model[0].bias
    with torch.no_grad():
        weight[3], bias[3] = 0.0, -1.0
    first = step.optimizer.state[weight]["exp_avg"]
    first[3] = 1e-40
    native(step, x, y)
    assert (first[3] == 0).all()
    assert sum([1e-310]) / 2 > 0  # the thread's own arithmetic is as it was


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


def test_copies_and_pickles() -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = started(chain([6, 8, 5]), nn.CrossEntropyLoss(), OPTIMIZERS["adam"], x, y)
    twin = copy.deepcopy(step)
    assert twin.model is not step.model
    assert torch.equal(native(twin, x, y), native(step, x, y))
    assert all(
        torch.equal(p, q) for p, q in zip(step.model.parameters(), twin.model.parameters(), strict=True)
    )


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


def test_disabled_and_reasons() -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = started(chain([6, 8, 5]), nn.CrossEntropyLoss(), OPTIMIZERS["sgd"], x, y)
    with fastnn.disabled():
        assert reason(step, x, y) == "fastnn is disabled"
    native(step, x, y)


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (torch.randn(7, 6), classes_of(7, 5), "the input has another dtype"),
        (torch.randn(2, 7, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64), "no matrix"),
        (torch.randn(0, 6, dtype=torch.float64), classes_of(0, 5), "the batch is empty"),
        (torch.randn(7, 6, dtype=torch.float64), torch.rand(7, 5, dtype=torch.float64), "no class indices"),
        (torch.randn(7, 6, dtype=torch.float64), classes_of(6, 5), "another batch size"),
        (torch.randn(7, 3, dtype=torch.float64), classes_of(7, 5), "as many features"),
        (torch.randn(7, 6, dtype=torch.float64, requires_grad=True), classes_of(7, 5), "requires grad"),
        (torch.randn(7, 6, dtype=torch.complex128).conj().imag, classes_of(7, 5), "negated"),
    ],
)
def test_batches_that_run_eagerly(x: Tensor, y: Tensor, why: str) -> None:
    model = chain([6, 8, 5])
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"](model.parameters()))
    seen: list[Any] = []
    # What is suppressed is torch's own error, of the eager step.
    with _backend.recording(seen.append), contextlib.suppress(RuntimeError, ValueError):
        step(x, y)
    reasons = [d.reason for d in seen if d.op == "train_step"]
    assert why in str(reasons)


def _freeze(step: fastnn.TrainStep) -> None:
    step.model[0].weight.requires_grad_(False)


def _hook_module(step: fastnn.TrainStep) -> None:
    step.model[1].register_forward_hook(lambda *_: None)


def _hook_parameter(step: fastnn.TrainStep) -> None:
    step.model[0].weight.register_hook(lambda g: g * 2)


def _hook_accumulation(step: fastnn.TrainStep) -> None:
    step.model[0].weight.register_post_accumulate_grad_hook(lambda _: None)


def _hook_optimizer(step: fastnn.TrainStep) -> None:
    step.optimizer.register_step_pre_hook(lambda *_: None)


def _hook_loss(step: fastnn.TrainStep) -> None:
    step.loss.register_forward_hook(lambda *_: None)


def _replace_step(step: fastnn.TrainStep) -> None:
    usual = step.optimizer.step
    step.optimizer.step = lambda *a: usual(*a)  # type: ignore[method-assign]


def _insert_module(step: fastnn.TrainStep) -> None:
    step.model.append(nn.Dropout(0.5))


def _other_loss(step: fastnn.TrainStep) -> None:
    step.loss = nn.NLLLoss()


def _no_reduction(step: fastnn.TrainStep) -> None:
    step.loss.reduction = "none"


def _more_parameters(step: fastnn.TrainStep) -> None:
    step.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})


def _capturable(step: fastnn.TrainStep) -> None:
    step.optimizer.param_groups[0]["differentiable"] = True


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_freeze, "frozen"),
        (_hook_module, "hook"),
        (_hook_parameter, "a parameter has a hook"),
        (_hook_accumulation, "a parameter has a hook"),
        (_hook_optimizer, "step hook"),
        (_hook_loss, "hook"),
        (_replace_step, "step is replaced"),
        (_insert_module, "Dropout"),
        (_other_loss, "NLLLoss"),
        (_no_reduction, "not reduced"),
        (_more_parameters, "parameters that the chain lacks"),
        (_capturable, "differentiable"),
    ],
)
def test_what_is_watched_or_changed_runs_eagerly(
    change: Callable[[fastnn.TrainStep], None], why: str
) -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = started(chain([6, 8, 5]), nn.CrossEntropyLoss(), OPTIMIZERS["sgd"], x, y)
    native(step, x, y)
    change(step)
    seen: list[Any] = []
    # What is suppressed is torch's own error, of the eager step.
    with _backend.recording(seen.append), contextlib.suppress(RuntimeError):
        step(x, y)
    assert why in next(d.reason for d in seen if d.op == "train_step")


def test_a_removed_hook_lets_it_run_natively_again() -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = started(chain([6, 8, 5]), nn.CrossEntropyLoss(), OPTIMIZERS["sgd"], x, y)
    calls: list[int] = []
    hook = step.model[1].register_forward_hook(lambda *_: calls.append(1))
    reason(step, x, y)
    hook.remove()
    for _ in range(8):
        step(x, y)
    native(step, x, y)
    assert len(calls) == 1


def test_a_replaced_parameter_is_seen() -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = started(chain([6, 8, 5]), nn.CrossEntropyLoss(), OPTIMIZERS["sgd"], x, y)
    old = step.model[0].weight
    kept = old.detach().clone()
    step.model[0].weight = nn.Parameter(torch.randn_like(old))
    assert "parameters that the chain lacks" in reason(step, x, y)
    assert torch.equal(old, kept)


def test_a_changed_dtype_is_seen() -> None:
    model = chain([6, 8, 5])
    y = classes_of(7, 5)
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"](model.parameters()))
    native(step, torch.randn(7, 6, dtype=torch.float64), y)
    model.float()
    assert native(step, torch.randn(7, 6), y).dtype == torch.float32


class Viewed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 16, dtype=torch.float64)
        self.fc2 = nn.Linear(16, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x.view(-1, 12))))


def test_a_view_as_rows() -> None:
    def images() -> Tensor:
        return torch.randn(9, 3, 4, dtype=torch.float64)

    batches = [(images(), classes_of(9, 3)) for _ in range(3)]
    compare(Viewed(), nn.CrossEntropyLoss(), OPTIMIZERS["adam"], batches, TOLERANCE)
    step = fastnn.TrainStep(model := Viewed(), F.cross_entropy, OPTIMIZERS["sgd"](model.parameters()))
    several_rows_a_sample = torch.randn(9, 2, 12, dtype=torch.float64)
    assert "another batch size" in reason(step, several_rows_a_sample, classes_of(18, 3))


class WithHelpers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(7, 16, dtype=torch.float64)
        self.fc2 = nn.Linear(16, 3, dtype=torch.float64)

    def body(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc1(x))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if getattr(self, "extra", None) is not None:
            h = self.extra(h)
        return self.fc2(h)


def test_a_forward_that_hangs_on_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model = WithHelpers()
    x, y = torch.randn(9, 7, dtype=torch.float64), classes_of(9, 3)
    step = started(model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"], x, y)
    with monkeypatch.context() as patch:
        patch.setattr("fastnn._train_step.make_plan", None)  # the plan is kept
        for _ in range(3):
            native(step, x, y)
    model.extra = nn.Dropout(0.5)
    reason(step, x, y)


class Backwards(nn.Sequential):
    def __iter__(self) -> Any:
        return reversed(list(self._modules.values()))


def test_a_sequential_with_an_order_of_its_own_runs_eagerly() -> None:
    model = Backwards(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"](model.parameters()))
    reason(step, torch.randn(4, 5), classes_of(4, 5))


def test_groups_that_share_memory_run_eagerly() -> None:
    memory = torch.randn(36, dtype=torch.float64)
    model = chain([6, 6, 6], bias=False)
    model[0].weight, model[2].weight = (nn.Parameter(memory.view(6, 6)) for _ in range(2))
    groups = [{"params": [p]} for p in model.parameters()]
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(groups, lr=0.1))
    assert "share memory" in reason(step, torch.randn(4, 6, dtype=torch.float64), classes_of(4, 6))


def test_gradients_kept_in_shared_memory_run_eagerly() -> None:
    model = chain([6, 8])
    memory = torch.zeros(48, dtype=torch.float64)
    x, y = torch.randn(8, 6, dtype=torch.float64), classes_of(8, 8)
    step = fastnn.TrainStep(
        model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"](model.parameters()), keep_grad=True
    )
    model[0].weight.grad, model[0].bias.grad = memory.view(8, 6), memory[:8]
    assert "share memory" in reason(step, x, y)
    kept = x.clone()
    model[0].weight.grad = x
    reason(step, x, y)
    assert torch.equal(x, kept)


def test_two_threads_in_one_step() -> None:
    """They wait for each other, also where one step runs eagerly: with a rate of 0 every loss is known."""
    model = chain([300, 400, 5], dtype=torch.float32)
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.0))
    batches = [(torch.randn(m, 300), classes_of(m, 5)) for m in (64, 256)]
    batches.append((batches[0][0].clone().requires_grad_(), batches[0][1]))  # runs eagerly
    expected = [F.cross_entropy(model(x), y).item() for x, y in batches]
    wrong: list[float] = []

    def run(i: int) -> None:
        for _ in range(40):
            loss = step(*batches[i]).item()
            if abs(loss - expected[i]) > 1e-4:
                wrong.append(loss)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_inference_mode_runs_eagerly() -> None:
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = started(chain([6, 8, 5]), nn.CrossEntropyLoss(), OPTIMIZERS["sgd"], x, y)
    seen: list[Any] = []
    with torch.inference_mode(), _backend.recording(seen.append), contextlib.suppress(RuntimeError):
        step(x, y)
    assert "inference mode" in seen[0].reason
    with torch.no_grad():
        native(step, x, y)


def test_memory_shared_with_a_parameter_runs_eagerly() -> None:
    x, y = torch.randn(6, 6, dtype=torch.float64), classes_of(6, 6)
    model = chain([6, 6])
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["sgd"](model.parameters()))
    native(step, x, y)
    assert "share memory" in reason(step, model[0].weight.detach(), y)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, got int"),
        ({"loss": "mse"}, TypeError, "loss must be callable, got str"),
        ({"optimizer": None}, TypeError, "optimizer must be a torch.optim.Optimizer, got NoneType"),
        ({"max_norm": -1.0}, ValueError, "max_norm must be at least 0, got -1.0"),
        ({"max_norm": "1"}, TypeError, "max_norm must be a number, got str"),
        ({"std": 0.0}, ValueError, "std must not be 0"),
        ({"loss": nn.MSELoss}, TypeError, "loss must be an instance, got the class MSELoss"),
        ({"keep_grad": 1}, TypeError, "keep_grad must be a bool, got int"),
        ({"mean": None}, TypeError, "mean must be a number, got NoneType"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    model = chain([6, 5])
    good = {"model": model, "loss": nn.MSELoss(), "optimizer": OPTIMIZERS["sgd"](model.parameters())}
    with pytest.raises(error, match=text):
        fastnn.TrainStep(**{**good, **arguments})
    step = fastnn.TrainStep(**good)
    for name, value in arguments.items():
        with pytest.raises(error, match=text):
            setattr(step, name, value)


def test_a_misspelt_option_and_a_foreign_optimizer() -> None:
    model = chain([6, 5])
    step = fastnn.TrainStep(model, nn.MSELoss(), OPTIMIZERS["sgd"](model.parameters()))
    with pytest.raises(AttributeError, match="no attribute 'max_nrom'; it has model, loss"):
        step.max_nrom = 0.5  # type: ignore[attr-defined]
    assert repr(step).startswith("TrainStep(Sequential, MSELoss, SGD, max_norm=None, keep_grad=False")
    with pytest.raises(ValueError, match="none of the model's parameters"):
        fastnn.TrainStep(chain([6, 5]), nn.MSELoss(), step.optimizer)


def test_layers_that_the_optimizer_lacks_keep_no_gradient() -> None:
    model = chain([6, 8, 5])
    x, y = torch.randn(7, 6, dtype=torch.float64), classes_of(7, 5)
    step = fastnn.TrainStep(model, nn.CrossEntropyLoss(), OPTIMIZERS["adam"](model[2].parameters()))
    assert "does not have every parameter" in reason(step, x, y)
    assert all(p.grad is None for p in model.parameters())
