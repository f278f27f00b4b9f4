"""`fastnn.capture` on a CUDA device: torch's kernels in a graph, with the eager function's numbers.

On a GPU the graphs are real; elsewhere tests/support/recorded_graph.py replaces them.
"""

from __future__ import annotations

import copy
import sys
from collections import UserList
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import count
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastnn
from fastnn import _dispatch, _torch_internals
from fastnn.capture import cuda_graph
from recorded_graph import RecordedKernels

pytestmark = pytest.mark.skipif(_dispatch.cpu is None, reason="needs the compiled module")


class Where:
    """The device, and how many graphs were captured there."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.captures = 0
        self.why_not: str | None = None


@pytest.fixture(params=["recorded", pytest.param("cuda", marks=pytest.mark.cuda)])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Where:
    found = Where("cuda" if request.param == "cuda" else "cpu")
    capture = cuda_graph.capture
    if request.param == "recorded":
        capture = RecordedKernels(None).capture
        monkeypatch.setattr(_torch_internals, "dispatch_modes", lambda: 0)  # the recording's own
        monkeypatch.setattr(cuda_graph, "is_there", lambda _: True)
        monkeypatch.setattr(cuda_graph, "why_not_now", lambda _: None)
        monkeypatch.setattr(cuda_graph, "in_turn", lambda _: nullcontext())
        for name in ("adam", "rmsprop"):  # torch's refuse parameters of the CPU
            devices = "_get_capturable_supported_devices"
            monkeypatch.setattr(sys.modules[f"torch.optim.{name}"], devices, lambda *_, **__: ["cpu"])

    def counted(*args: Any) -> Any:
        if found.why_not is not None:
            raise RuntimeError(found.why_not)
        found.captures += 1
        return capture(*args)

    monkeypatch.setattr(cuda_graph, "capture", counted)
    return found


class Pair:
    """A function of a net and its optimizer twice: captured on the device, and eager on the CPU."""

    def __init__(self, where: Where, make: Callable[..., Any], optimizer: Any = None, **options: Any) -> None:
        self.where = where
        self.net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
        self.twin = self.net  # no bias before the normalisation, whose gradient would be rounding error
        self.net = copy.deepcopy(self.net).to(where.device)
        optimizer = optimizer or (lambda p: torch.optim.Adam(p, lr=1e-2, capturable=True))
        self.ours = optimizer(self.net.parameters())
        self.theirs = optimizer(self.twin.parameters())
        self.captured = fastnn.capture(make(self.net, self.ours), **options)
        self.eager = make(self.twin, self.theirs)

    def call(self, *args: Any) -> None:
        given = [a.to(self.where.device, copy=True) if isinstance(a, Tensor) else a for a in args]
        close(self.captured(*given), self.eager(*args))
        close(given, args)  # what is written into arguments
        close([*self.net.state_dict().values()], [*self.twin.state_dict().values()])

    def calls(self, n: int, *args: Any) -> None:
        for _ in range(n):
            self.call(*args)

    def gradients(self) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        for p, q in zip(self.net.parameters(), self.twin.parameters(), strict=True):
            yield p.grad, q.grad


def close(ours: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        torch.testing.assert_close(ours.detach().cpu(), expected.detach(), rtol=1e-4, atol=1e-5)
    elif isinstance(expected, (list, tuple)):
        assert len(ours) == len(expected)
        for a, b in zip(ours, expected, strict=True):
            close(a, b)
    else:
        assert ours == expected


def training(net: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
    def update(x: Tensor, y: Tensor) -> Any:
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5, foreach=True)
        optimizer.step()
        return loss.detach()

    return update


def accumulate(net: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
    def add(x: Tensor, y: Tensor) -> Any:
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss.detach()

    return add


def batch(n: int = 7) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 6), torch.randint(3, (n,))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, capturable=True),
    "adamw, fastnn's": lambda p: fastnn.optim.AdamW(p, lr=1e-2, capturable=True, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, capturable=True, foreach=False),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_training_step(optimizer: Any, where: Where) -> None:
    pair = Pair(where, training, optimizer, native=True)
    for _ in range(6):
        pair.call(*batch())
    assert where.captures == 1
    assert pair.captured.programs[0].checked is True
    for p, q in zip(pair.net.parameters(), pair.twin.parameters(), strict=True):
        assert p.grad is None  # dropped by the function itself
        ours, theirs = pair.ours.state[p], pair.theirs.state[q]
        close([*ours.values()], [*theirs.values()])
    pair.calls(4, *batch(5))  # another signature
    assert where.captures == 2
    pair.call(*batch(7))
    assert where.captures == 2
    told = str(fastnn.explain(pair.captured, *(t.to(where.device) for t in batch())))
    assert "CUDA graph" in told


def test_gradients_that_are_kept(where: Where) -> None:
    pair = Pair(where, training, keep_grad=True)
    for _ in range(5):
        pair.call(*batch())
        for ours, theirs in pair.gradients():
            close(ours, theirs)
    before = [ours.clone() for ours, _ in pair.gradients() if ours is not None]
    held = [ours for ours, _ in pair.gradients()]
    pair.call(*batch())
    close(held, before)  # a replay writes to new ones


def test_gradients_that_are_accumulated(where: Where) -> None:
    pair = Pair(where, accumulate, native=True)
    for _ in range(6):
        pair.call(*batch())
        for ours, theirs in pair.gradients():
            close(ours, theirs)
    assert where.captures == 1
    pair.ours.zero_grad(), pair.theirs.zero_grad()
    pair.call(*batch())
    for ours, theirs in pair.gradients():
        close(ours, theirs)


def test_gradients_that_other_code_drops(where: Where) -> None:
    pair = Pair(where, accumulate, native=True)
    for _ in range(5):
        pair.ours.zero_grad(), pair.theirs.zero_grad()
        pair.call(*batch())
        for ours, theirs in pair.gradients():
            close(ours, theirs)
    assert where.captures == 1
    pair.call(*batch())  # this time they are accumulated
    for ours, theirs in pair.gradients():
        close(ours, theirs)


def test_the_learning_rate_is_read_and_other_options_are_recorded_again(where: Where) -> None:
    pair = Pair(where, training, native=True)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.7) for o in (pair.ours, pair.theirs)]
    for _ in range(8):
        pair.call(*batch())
        for scheduler in schedulers:
            scheduler.step()
    assert where.captures == 1
    for optimizer in (pair.ours, pair.theirs):
        optimizer.param_groups[0]["betas"] = (0.5, 0.9)
    pair.calls(3, *batch())
    assert where.captures == 2


def _load_state(pair: Pair) -> None:
    for optimizer in (pair.ours, pair.theirs):
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def _move_parameter(pair: Pair) -> None:
    for net in (pair.net, pair.twin):
        net[0].weight.data = net[0].weight.data * 0.5


def _evaluate(pair: Pair) -> None:
    pair.net.eval(), pair.twin.eval()


def _freeze(pair: Pair) -> None:
    for net in (pair.net, pair.twin):
        net[0].weight.requires_grad_(False)


def _new_weight(pair: Pair) -> None:
    new = torch.randn(3)
    for net in (pair.net, pair.twin):
        net[3].bias = nn.Parameter(new.clone().to(net[0].weight.device))


@pytest.mark.parametrize("change", [_load_state, _move_parameter, _evaluate, _freeze, _new_weight])
def test_what_changes_is_recorded_again(change: Callable[[Pair], None], where: Where) -> None:
    pair = Pair(where, training, native=True)
    pair.calls(4, *batch())
    change(pair)
    for _ in range(5):
        pair.call(*batch())
    assert where.captures == 2


def test_precision_of_products_is_part_of_a_graph(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(where, training, native=True)
    pair.calls(4, *batch())
    monkeypatch.setattr(cuda_graph, "arithmetic", lambda: ("another",))
    pair.calls(4, *batch())
    assert where.captures == 2


def test_results_and_arguments(where: Where) -> None:
    kept = torch.arange(6.0).to(where.device)

    def mixed(x: Tensor, options: dict[str, Any]) -> Any:
        y = x * 2
        x.add_(1)
        options["out"].copy_(y)
        return {"fresh": y, "row": y[1:, ::2], "given": x, "part": x[0], "kept": kept, "n": 3, "none": None}

    captured = fastnn.capture(mixed, native=True)
    for i in range(5):
        x, out = torch.randn(3, 4).to(where.device), torch.zeros(3, 4).to(where.device)
        x0, version = x.clone(), x._version
        result = captured(x, {"out": out, "factor": 2})
        close(result["fresh"], x0.cpu() * 2)
        close(out, x0.cpu() * 2)
        close(x, x0.cpu() + 1)
        assert x._version > version
        assert result["given"] is x
        assert result["part"].data_ptr() == x.data_ptr()
        assert result["kept"] is kept
        assert (result["n"], result["none"]) == (3, None)
        result["row"].fill_(i)  # a part of the other result
        assert (result["fresh"][1:, ::2] == i).all()
    assert where.captures == 1


def test_results_of_one_call_outlive_the_next(where: Where) -> None:
    captured = fastnn.capture(lambda x: x * 2, native=True)
    xs = [torch.randn(5).to(where.device) for _ in range(6)]
    results = [captured(x) for x in xs]
    for x, result in zip(xs, results, strict=True):
        close(result, x.cpu() * 2)


@pytest.mark.parametrize(
    ("make", "optimizer", "reason"),
    [
        (training, lambda p: torch.optim.Adam(p, lr=1e-2), "create it with capturable=True"),
        (training, lambda p: torch.optim.Adagrad(p, lr=1e-2), "create it with capturable=True"),
        (lambda net, _: lambda x, y: net(x).sum().item(), None, "item"),
        (lambda net, _: lambda x, y: (net(x), x)[0], None, "an autograd graph"),
    ],
    ids=["adam", "adagrad", "item", "graph"],
)
def test_what_no_graph_holds_runs_as_written(make: Any, optimizer: Any, reason: str, where: Where) -> None:
    pair = Pair(where, make, optimizer)
    with pytest.warns(fastnn.EagerStepWarning, match=reason):
        pair.calls(5, *batch())
    assert where.captures == 0


def test_a_capture_that_fails_leaves_all_as_it_was(where: Where) -> None:
    pair = Pair(where, training)
    pair.calls(2, *batch())
    where.why_not = "no graphs today"
    with pytest.warns(fastnn.EagerStepWarning, match="no graphs today"):
        pair.calls(3, *batch())
    assert pair.captured.programs == ()


def test_an_exception_within_a_capture_leaves_gradients_as_they_were(where: Where) -> None:
    fails: UserList[Exception] = UserList()  # to be raised; not watched, unlike a list

    def failing(net: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        add = accumulate(net, optimizer)

        def run(x: Tensor, y: Tensor) -> Any:
            result = add(x, y)
            if fails:
                raise fails.pop()
            return result

        return run

    pair = Pair(where, failing)
    for i in range(5):
        pair.ours.zero_grad(), pair.theirs.zero_grad()
        fails += [ValueError("once")] * (i == 2)
        with pytest.warns(fastnn.EagerStepWarning, match="once") if fails else nullcontext():
            pair.call(*batch())
        for ours, theirs in pair.gradients():
            close(ours, theirs)


def test_what_a_replay_writes_is_counted(where: Where) -> None:
    pair = Pair(where, training, native=True)
    pair.calls(4, *batch())
    written = [*pair.net.parameters(), pair.net[1].running_mean]
    before = [t._version for t in written]
    pair.call(*batch())
    assert all(t._version > version for t, version in zip(written, before, strict=True))
    # A scheduler created now knows that there was a step.
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.7) for o in (pair.ours, pair.theirs)]
    pair.call(*batch())
    for scheduler in schedulers:
        scheduler.step()


def test_graphs_have_torchs_kernels(where: Where) -> None:
    net = fastnn.nn.Sequential(fastnn.nn.Linear(6, 8), fastnn.nn.ReLU(), fastnn.nn.Linear(8, 3)).to(
        where.device
    )
    captured = fastnn.capture(net, native=True)
    for _ in range(5):
        x = torch.randn(4, 6).to(where.device)
        with torch.no_grad(), fastnn.disabled():
            expected = net(x).cpu()
        with torch.no_grad():
            close(captured(x), expected)


@pytest.mark.filterwarnings("ignore:.*the length of ran while it runs")
def test_a_graph_of_other_code_runs_as_written(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    captured = fastnn.capture(lambda x: ran.append(1) or x * 2, native=True)
    x = torch.randn(4).to(where.device)
    for _ in range(5):
        captured(x)
    assert len(ran) == 3
    if where.device == "cpu":
        monkeypatch.setattr(cuda_graph, "why_not_now", lambda _: "captured")
        close(captured(x), x.cpu() * 2)
        assert len(ran) == 4


def test_inference_is_a_graph_too(where: Where) -> None:
    net = nn.Linear(6, 3).to(where.device)

    @fastnn.capture(native=True)
    @torch.no_grad()
    def act(x: Tensor) -> Tensor:
        return torch.tanh(net(x))

    for _ in range(5):
        x = torch.randn(2, 6).to(where.device)
        with torch.no_grad():
            expected = torch.tanh(net(x))
        close(act(x), expected.cpu())
    assert where.captures == 1


def test_devices_that_are_mixed(where: Where) -> None:
    if where.device == "cpu":
        pytest.skip("needs two kinds of devices")
    captured = fastnn.capture(lambda x, y: x * y)
    x, y = torch.ones(3, device="cuda"), torch.tensor(2.0)
    with pytest.warns(fastnn.EagerStepWarning, match="not on|beside"):
        _ = [captured(x, y) for _ in range(4)]


def test_views_of_arguments_with_gaps(where: Where) -> None:
    captured = fastnn.capture(lambda x: (x[1], x + 1))
    x = torch.arange(24.0, device=where.device).view(3, 8)[:, ::2]
    with pytest.warns(fastnn.EagerStepWarning, match="a view of an argument"):
        rows = [captured(x)[0] for _ in range(5)]
    close(rows, [x[1]] * 5)


def test_what_it_changes_at_the_third_call(where: Where) -> None:
    runs, scale = count(1), 1.0

    def fn(x: Tensor) -> Tensor:
        nonlocal scale
        if next(runs) == 3:
            scale = 2.0
        return x * scale

    captured = fastnn.capture(fn)
    x = torch.ones(3, device=where.device)
    with pytest.warns(fastnn.EagerStepWarning, match="changes something that it reads"):
        found = [captured(x) for _ in range(5)]
    close(found, [x, x, x * 2, x * 2, x * 2])
