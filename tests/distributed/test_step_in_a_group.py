"""`TrainStep` and `capture` in one of two processes: they average gradients, or say that they do not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fastnn
from processes import SIZE, Processes
from shards import STEPS, batch, difference, loop, model, reference, share

DDP = DistributedDataParallel


def zero_redundancy(params: Any, lr: float) -> Any:
    """fastnn's Adam, its state sharded over the processes."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # importing it gives a warning of torch

    return ZeroRedundancyOptimizer(params, fastnn.optim.Adam, lr=lr)


def observed(rank: int, make: Callable[[], tuple[nn.Module, Callable[..., Any]]]) -> dict[str, Any]:
    """The results of some steps of what `make` returns, on a share of each batch."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trained, step = make()
        for _ in range(STEPS - 1):
            step(*share(rank))
        explained = fastnn.explain(step, *share(rank))
    return {
        "difference": difference(trained, reference(torch.optim.Adam)),
        "decisions": [(d.op, d.reason) for d in explained.decisions],
        "warnings": [text for w in seen if (text := str(w.message)).startswith(("TrainStep", "fastnn"))],
    }


def _train_step(wrap: Callable[[nn.Module], nn.Module], **options: Any) -> tuple[nn.Module, Any]:
    trained = model()
    wrapped = wrap(trained)
    optimizer = fastnn.optim.Adam(trained.parameters(), lr=0.01)
    return trained, fastnn.TrainStep(wrapped, nn.CrossEntropyLoss(), optimizer, **options)


def _inner(module: nn.Module) -> nn.Module:
    _inner.kept = DDP(module)  # type: ignore[attr-defined]
    return module


def wrapped_step() -> tuple[nn.Module, Any]:
    return _train_step(DDP)


def nested_step() -> tuple[nn.Module, Any]:
    return _train_step(lambda module: nn.Sequential(DDP(module)))


def local_step() -> tuple[nn.Module, Any]:
    return _train_step(lambda module: module)


def inner_step() -> tuple[nn.Module, Any]:
    return _train_step(_inner)


def zero_step() -> tuple[nn.Module, Any]:
    trained = model()
    optimizer = zero_redundancy(trained.parameters(), lr=0.01)
    return trained, fastnn.TrainStep(DDP(trained), nn.CrossEntropyLoss(), optimizer)


def _captured(wrap: Callable[[nn.Module], nn.Module], make: Any, average: bool) -> tuple[nn.Module, Any]:
    trained = model()
    wrapped = wrap(trained)
    optimizer = make(trained.parameters(), lr=0.01)

    @fastnn.capture
    def update(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(wrapped(x), y)
        loss.backward()
        if average:
            for p in trained.parameters():
                dist.all_reduce(p.grad)
                p.grad /= SIZE
        optimizer.step()
        return loss.detach()

    return trained, update


class Averaging(fastnn.optim.Adam):
    """Averages gradients itself."""

    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                dist.all_reduce(p.grad)
                p.grad /= SIZE
        super().step()


def captured_wrapper() -> tuple[nn.Module, Any]:
    return _captured(DDP, fastnn.optim.Adam, average=False)


def captured_collective() -> tuple[nn.Module, Any]:
    return _captured(lambda module: module, fastnn.optim.Adam, average=True)


def captured_averaging() -> tuple[nn.Module, Any]:
    return _captured(lambda module: module, Averaging, average=False)


def captured_zero() -> tuple[nn.Module, Any]:
    return _captured(lambda module: module, zero_redundancy, average=True)


@pytest.mark.parametrize(
    ("make", "op", "reason"),
    [
        (wrapped_step, "train_step", "DistributedDataParallel averages gradients over processes"),
        (nested_step, "train_step", "DistributedDataParallel averages gradients over processes"),
        (zero_step, "train_step", "no native update for ZeroRedundancyOptimizer"),
        (captured_wrapper, "capture", "DistributedDataParallel works on other devices or in other processes"),
        (captured_collective, "capture", "the collective allreduce_"),
        (captured_averaging, "capture", "the collective allreduce_"),
        (captured_zero, "capture", "the collective allreduce_"),
    ],
)
def test_gradients_are_averaged_eagerly(processes: Processes, make: Any, op: str, reason: str) -> None:
    for seen in processes.run(observed, make):
        assert seen["difference"] < 1e-12
        why = dict(seen["decisions"])[op]
        assert reason in why
        assert [reason in text for text in seen["warnings"]] == [True]


@pytest.mark.parametrize("make", [local_step, inner_step])
def test_a_step_that_stays_local_warns_once(processes: Processes, make: Any) -> None:
    for seen in processes.run(observed, make):
        assert seen["difference"] > 1e-3
        texts = [text for text in seen["warnings"] if "runs eagerly" not in text]
        assert [text.partition(":")[0] for text in texts] == [
            "TrainStep does not average gradients over the 2 processes"
        ]


def silenced(rank: int) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message="TrainStep does not average gradients")
        local_step()
    return [str(warning.message) for warning in seen]


def test_the_warning_is_silenced_as_it_says(processes: Processes) -> None:
    assert processes.run(silenced) == [[], []]


def native_step(rank: int) -> list[Any]:
    """The reasons of steps in a process group, without a wrapper: the group alone changes nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, step = local_step()
    return [d.reason for d in fastnn.explain(step, *share(rank)).decisions]


def test_a_local_step_is_native(processes: Processes) -> None:
    assert processes.run(native_step) == [[None], [None]]


def refused(rank: int) -> str:
    _, step = _train_step(DDP, native=True)
    try:
        step(*batch())
    except RuntimeError as error:
        return str(error)
    return "it ran"


def test_native_refuses_a_wrapper(processes: Processes) -> None:
    for text in processes.run(refused):
        assert "native=True, but the step cannot run natively" in text
        assert "DistributedDataParallel averages gradients" in text


def plain_loop(rank: int) -> tuple[float, set[Any]]:
    trained = model()
    optimizer = fastnn.optim.Adam(trained.parameters(), lr=0.01)
    explained = fastnn.explain(loop, DDP(trained), optimizer, *share(rank))
    ops = {(d.op, d.reason) for d in explained.decisions}
    return difference(trained, reference(torch.optim.Adam)), ops


def test_a_loop_with_the_wrapper_is_native_op_by_op(processes: Processes) -> None:
    for apart, ops in processes.run(plain_loop):
        assert apart < 1e-12
        assert ops == {("mlp", None), ("mlp_backward", None), ("cross_entropy", None), ("adam", None)} or (
            ops == {("mlp", None), ("mlp_backward", None), ("adam", None)}
        )
