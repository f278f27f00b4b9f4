"""The kernel that takes all steps of an epoch, against a loop in float64: on a GPU and emulated."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cuda_emulation import ORDERS
from fastnn import _dispatch

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")

MEAN, STD = 0.3, 0.5


class Kernels(NamedTuple):
    """The compiled module and the device of its tensors."""

    cuda: Any
    device: str


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.cuda), *range(len(ORDERS))])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """On a GPU, if there is one, and emulated in several thread orders."""
    if request.param == "cuda":
        return Kernels(_dispatch.load_cuda()[0], "cuda")
    emulated = request.getfixturevalue("emulated")
    emulated.checks.set_order(*ORDERS[request.param])
    return Kernels(emulated.cuda, "cpu")


class Problem(NamedTuple):
    """A data set, a network (W1, b1, W2, b2) and options of Adam."""

    images: Tensor
    labels: Tensor
    order: Tensor
    values: list[Tensor]
    m: list[Tensor]
    v: list[Tensor]
    steps_before: float
    options: dict[str, Any]
    rates: list[float] | None = None


def a_problem(
    features: int = 20,
    hidden: int = 16,
    classes: int = 5,
    count: int = 37,
    *,
    steps_before: float = 0,
    **options: Any,
) -> Problem:
    values = [
        torch.randn(hidden, features) / features**0.5,
        torch.randn(hidden) / 4,
        torch.randn(classes, hidden) / hidden**0.5,
        torch.randn(classes) / 4,
    ]
    started = float(steps_before > 0)
    m = [started * torch.randn_like(p) / 100 for p in values]
    v = [started * (0.5 + torch.rand_like(p)) for p in values]
    return Problem(
        torch.randint(256, (count, features), dtype=torch.uint8),
        torch.randint(classes, (count,)),
        torch.randperm(count),
        values,
        m,
        v,
        steps_before,
        {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.0, "decoupled": False, **options},
    )


def reference(problem: Problem, batch: int, ignore_index: int) -> tuple[Tensor, list[Tensor]]:
    """Losses, and values, m and v after the epoch, in float64."""
    values = [p.double().requires_grad_() for p in problem.values]
    optimizer_type = torch.optim.AdamW if problem.options["decoupled"] else torch.optim.Adam
    options = {k: o for k, o in problem.options.items() if k != "decoupled"}
    optimizer = optimizer_type(values, **options)
    for p, m, v in zip(values, problem.m, problem.v, strict=True):
        optimizer.state[p] = {
            "step": torch.tensor(problem.steps_before),
            "exp_avg": m.double(),
            "exp_avg_sq": v.double(),
        }
    x = (problem.images.double() / 255 - MEAN) / STD
    losses = []
    for number, rows in enumerate(problem.order.split(batch)):
        if problem.rates is not None:
            optimizer.param_groups[0]["lr"] = problem.rates[number]
        h = F.relu(F.linear(x[rows], *values[:2]))
        target = problem.labels[rows]
        loss = F.cross_entropy(F.linear(h, *values[2:]), target, ignore_index=ignore_index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    states = [optimizer.state[p][key] for key in ("exp_avg", "exp_avg_sq") for p in values]
    return torch.stack(losses), [p.detach() for p in values] + states


def run(
    kernels: Kernels,
    problem: Problem,
    batch: int,
    *,
    cluster: int = 0,
    ignore_index: int = -100,
    device_steps: bool = False,
    not_taken: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Losses, then values, m and v, then the counts of steps."""
    cuda, device = kernels
    moved = [[t.to(device, copy=True) for t in tensors] for tensors in problem[3:6]]
    steps = [torch.tensor(float(problem.steps_before), device=device) for _ in range(4)]
    count = -(-len(problem.order) // batch)
    losses = torch.empty(count, device=device)
    scratch = torch.empty(cuda.epoch_scratch_bytes(count), dtype=torch.uint8, device=device)
    parameters = [
        (p, m, v, step if device_steps else None, problem.steps_before)
        for p, m, v, step in zip(*moved, steps, strict=True)
    ]
    o = problem.options
    rates = None
    if problem.rates is not None:
        rates = torch.tensor(problem.rates, dtype=torch.float64, device=device)
    images, labels, order = (t.to(device) for t in problem[:3])
    cuda.train_epoch(
        *(images, labels, order, batch, 1 / (255 * STD), -MEAN / STD, ignore_index, parameters),
        *(o["lr"], rates, *o["betas"], o["eps"], o["weight_decay"], o["decoupled"]),
        *(not_taken, losses, scratch, cluster),
    )
    return losses.cpu(), [t.cpu() for tensors in moved for t in tensors], [t.cpu() for t in steps]


def check(
    kernels: Kernels, problem: Problem, batch: int, *, ignore_index: int = -100, **options: Any
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Compare a run with the reference.

    Each step rounds sums of `features` products in float32: about sqrt(features) eps of the sum. The few
    steps of these tests and Adam's division by at least eps = 1e-3 amplify that; 1.5 of these units is the
    most that was observed.
    """
    losses, tensors, steps = run(kernels, problem, batch, ignore_index=ignore_index, **options)
    want_losses, want = reference(problem, batch, ignore_index)
    tolerance = 8 * problem.images.shape[1] ** 0.5 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(losses.double(), want_losses, rtol=tolerance, atol=tolerance)
    for ours, expected in zip(tensors, want, strict=True):
        assert float((ours - expected).abs().max()) <= tolerance * float(expected.abs().max())
    return losses, tensors, steps


# Features that are and are not whole words of 4 and 16 bytes, full and partial tiles of units, blocks without
# units, batches of full and partial tiles, and smaller last batches.
SHAPES = [
    ((20, 16, 5, 37), 16, 2),
    ((33, 24, 7, 40), 8, 4),
    ((48, 64, 10, 150), 64, 8),
    ((5, 3, 2, 9), 4, 4),
    ((16, 8, 32, 17), 17, 1),
    ((130, 40, 10, 50), 20, 1),
    ((16, 130, 3, 20), 8, 16),
]


@pytest.mark.parametrize(("shape", "batch", "cluster"), SHAPES)
def test_an_epoch_matches_float64(shape: tuple[int, ...], batch: int, cluster: int, kernels: Kernels) -> None:
    check(kernels, a_problem(*shape, steps_before=3), batch, cluster=cluster)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled": True},
        {"betas": (0.3, 0.7), "lr": 1e-3, "eps": 1e-2},
        {"steps_before": 1000},
    ],
)
@pytest.mark.parametrize("device_steps", [False, True])
def test_every_option_matches_float64(options: dict[str, Any], device_steps: bool, kernels: Kernels) -> None:
    problem = a_problem(**options)
    steps = check(kernels, problem, 8, device_steps=device_steps)[2]
    assert steps == [problem.steps_before + (5 if device_steps else 0)] * 4


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_rate_for_each_step(decoupled: bool, kernels: Kernels) -> None:
    problem = a_problem(weight_decay=0.1, decoupled=decoupled)
    check(kernels, problem._replace(rates=[0.02, 0.0, 1e-3, 0.01, 3e-3]), 8)


@pytest.mark.parametrize("rows", [3, 20, 90])
def test_rows_left_out_and_again(rows: int, kernels: Kernels) -> None:
    problem = a_problem()
    problem = problem._replace(order=torch.randint(36, (rows,)))
    problem.labels[36] = 99  # never read
    check(kernels, problem, 8)


def test_one_batch_at_a_time_where_two_do_not_fit(kernels: Kernels) -> None:
    check(kernels, a_problem(784, 16, 10, 300, steps_before=3), 128, cluster=2)


@pytest.mark.parametrize("cluster", [1, 4])
def test_the_same_bits_in_every_run(cluster: int, kernels: Kernels, request: pytest.FixtureRequest) -> None:
    problem = a_problem(33, 24, 7, 40)
    first = run(kernels, problem, 16, cluster=cluster)
    if kernels.device == "cpu":
        request.getfixturevalue("emulated").checks.set_order("threads", 5)
    again = run(kernels, problem, 16, cluster=cluster)
    for one, other in zip([first[0], *first[1]], [again[0], *again[1]], strict=True):
        assert torch.equal(one, other)


def test_ignored_labels_have_no_gradient(kernels: Kernels) -> None:
    problem = a_problem()
    problem.labels[::3] = 2
    problem.labels[problem.order[32:]] = 2  # the whole last batch
    losses, tensors, _ = run(kernels, problem, 8, ignore_index=2)
    most = problem._replace(order=problem.order[:32])
    want_losses, _ = reference(most, 8, 2)
    torch.testing.assert_close(losses[:4].double(), want_losses, rtol=1e-5, atol=1e-5)
    assert losses[4].isnan()
    assert all(t.isfinite().all() for t in tensors)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("labels", 5, "Target 5 is out of bounds."),
        ("labels", -1, "Target -1 is out of bounds."),
        ("order", 37, "index 37 is out of range of the data"),
        ("order", -1, "index -1 is out of range of the data"),
    ],
)
def test_bad_indices_change_nothing(name: str, value: int, words: str, kernels: Kernels) -> None:
    problem = a_problem()
    good = problem._replace(labels=problem.labels.clone(), order=problem.order.clone())
    getattr(problem, name)[30] = value
    run(kernels, problem, 8)
    with pytest.raises(IndexError, match=words):
        kernels.cuda.raise_bad_index(torch.empty(1, device=kernels.device))
    losses, tensors, _ = run(kernels, problem, 8)
    assert losses.isnan().all()
    for t, before in zip(tensors, [*problem.values, *problem.m, *problem.v], strict=True):
        assert torch.equal(t, before)
    if kernels.device == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(IndexError, match=words):
        run(kernels, good, 8)
    check(kernels, good, 8)


def test_steps_that_were_not_taken(kernels: Kernels) -> None:
    """The device counts them, and the next epoch continues from the steps taken."""
    problem = a_problem(steps_before=3)
    bad = problem._replace(labels=problem.labels.clone())
    bad.labels[30] = 5
    not_taken = torch.zeros(1, dtype=torch.int64, device=kernels.device)
    run(kernels, bad, 8, not_taken=not_taken)
    assert not_taken.item() == 5
    with pytest.raises(IndexError, match="Target 5"):
        kernels.cuda.raise_bad_index(not_taken)
    counted = run(kernels, problem._replace(steps_before=8), 8, not_taken=not_taken)
    expected = run(kernels, problem, 8)
    assert all(
        torch.equal(a, b) for a, b in zip([counted[0], *counted[1]], [expected[0], *expected[1]], strict=True)
    )
    assert not_taken.item() == 5


def test_what_does_not_fit(kernels: Kernels) -> None:
    cuda, device = kernels

    def why(features: int, hidden: int, classes: int, batch: int, cluster: int = 0) -> str:
        w1, w2 = torch.empty(hidden, features, device=device), torch.empty(classes, hidden, device=device)
        reason: str = cuda.why_no_epoch(w1, w2, batch, cluster)
        return reason

    assert why(784, 128, 10, 64) == ""
    assert why(784, 128, 10, 128) == ""
    assert why(784, 10, 33, 64) == "more than 32 classes"
    assert "too large" in why(784, 10, 10, 2000)
    assert "do not fit on the chip" in why(3072, 512, 10, 64)
    assert "do not fit on the chip" in why(784, 128, 10, 64, cluster=4)


def test_bad_tensors_are_refused(kernels: Kernels) -> None:
    problem = a_problem()
    with pytest.raises(RuntimeError, match="images has dtype float32, expected uint8"):
        run(kernels, problem._replace(images=problem.images.float()), 8)
    with pytest.raises(RuntimeError, match="labels has shape"):
        run(kernels, problem._replace(labels=problem.labels[:5]), 8)
    with pytest.raises(RuntimeError, match="lr has shape"):
        run(kernels, problem._replace(rates=[0.1]), 8)
    with pytest.raises(RuntimeError, match="there are no images"):
        run(kernels, problem._replace(order=problem.order[:0]), 8)
    with pytest.raises(RuntimeError, match="b1 has shape"):
        run(kernels, problem._replace(values=[problem.values[0], torch.zeros(3), *problem.values[2:]]), 8)
