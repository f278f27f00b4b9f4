"""Shared by the tests of captured training steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastnn
from cuda_emulation import Emulation
from fastnn import _dispatch, _torch_internals
from fastnn.capture import cuda_graph
from fastnn.step.graph_update import COVERED
from recorded_graph import RecordedKernels
from train_steps import OPTIMIZERS, TOLERANCE, Optimizer, chain, eager_step

Batch = tuple[Tensor, Tensor]


class Graphs:
    """Where a test runs, and how often something was captured there."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.captures = 0
        self.stream: object = "a stream"


def set_up(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """For a test with the parameter "cuda" or "recorded"."""
    found = Graphs("cuda" if request.param == "cuda" else "cpu")
    capture = cuda_graph.capture
    if request.param == "recorded":
        emulation: Emulation = request.getfixturevalue("emulated")
        emulation.checks.set_order("reverse", 0)
        kernels = RecordedKernels(emulation.cuda)
        capture = kernels.capture
        monkeypatch.setattr(_dispatch, "native", lambda _: kernels)
        monkeypatch.setattr(_torch_internals, "dispatch_modes", lambda: 0)  # the recording's own
        monkeypatch.setattr(cuda_graph, "is_there", lambda _: True)
        monkeypatch.setattr(cuda_graph, "why_not_now", lambda _: None)
        monkeypatch.setattr(cuda_graph, "current_stream", lambda _: found.stream)

    def counted(*args: Any) -> Any:
        found.captures += 1
        return capture(*args)

    monkeypatch.setattr(cuda_graph, "capture", counted)
    return found


def classes(m: int, n: int = 5) -> Batch:
    return torch.randn(m, 20, dtype=torch.float64), torch.randint(n, (m,))


def adam(params: Any, **options: Any) -> torch.optim.Optimizer:
    return fastnn.optim.Adam(params, **{"lr": 1e-2, "eps": 1e-3} | options)


class Pair:
    """A model that a `TrainStep` trains on the device, and its twin that torch trains on the CPU."""

    def __init__(
        self,
        graphs: Graphs,
        model: nn.Module | None = None,
        loss: Any = None,
        make: Optimizer = adam,
        **options: Any,
    ) -> None:
        self.graphs = graphs
        self.twin = chain([20, 33, 5]) if model is None else model
        self.model = copy.deepcopy(self.twin).to(graphs.device)
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        ours = copy.deepcopy(self.loss).to(graphs.device) if isinstance(loss, nn.Module) else self.loss
        self.theirs, self.optimizer = make(self.twin.parameters()), make(self.model.parameters())
        self.max_norm = options.get("max_norm")
        self.step = fastnn.TrainStep(self.model, ours, self.optimizer, **options)

    def both(self, change: Callable[[torch.optim.Optimizer], object]) -> None:
        change(self.optimizer)
        change(self.theirs)

    def take(self, batch: Batch) -> str | None:
        """Take a step with each and compare; returns why ours was eager."""
        x, y = batch
        seen = fastnn.explain(self.step, x.to(self.graphs.device), y.to(self.graphs.device))
        with fastnn.disabled():
            expected = eager_step(self.twin, self.loss, self.theirs, x, y, max_norm=self.max_norm)
        loss: Tensor = seen.result
        assert loss.shape == ()
        assert not loss.requires_grad
        close(loss, expected)
        for p, q in zip(self.model.parameters(), self.twin.parameters(), strict=True):
            close(p, q)
            if self.step.keep_grad and q.grad is not None:
                close(p.grad, q.grad)
            else:
                assert p.grad is None
            theirs, ours = self.theirs.state.get(q, {}), self.optimizer.state.get(p, {})
            assert theirs.keys() == ours.keys()
            for key, value in theirs.items():
                close(ours[key], value)
        return next(d.reason for d in seen.decisions if d.op == "train_step")

    def replay(self, batch: Batch) -> None:
        assert self.take(batch) is None

    def capture(self, batch: Batch) -> None:
        """Take steps until one is captured."""
        while self.take(batch) is not None:
            assert self.graphs.captures == 0

    def again(self, batch: Batch) -> None:
        """Take steps until one is replayed: after a change that invalidates the graphs."""
        captures = self.graphs.captures
        why = self.take(batch)
        assert why is not None
        assert "captured after" in why
        while self.take(batch) is not None:
            assert self.graphs.captures == captures
        assert self.graphs.captures == captures + 1


def close(ours: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        torch.testing.assert_close(ours.detach().cpu(), expected.detach(), rtol=TOLERANCE, atol=TOLERANCE)
    else:
        assert ours == expected


def with_tensor(optimizer: type[torch.optim.Optimizer]) -> Optimizer:
    """With a learning rate on the device of the parameters."""

    def make(params: Any) -> torch.optim.Optimizer:
        params = list(params)
        lr = torch.tensor(0.01, dtype=torch.float64, device=params[0].device)
        return optimizer(params, lr=lr)  # type: ignore[call-arg]

    return make


ALL_OPTIMIZERS: dict[str, Optimizer] = {
    **{name: make for name, make in OPTIMIZERS.items() if name.startswith(tuple(COVERED))},
    "adam-capturable": lambda p: fastnn.optim.Adam(p, lr=1e-2, capturable=True),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=True),
    "adam-tensor": with_tensor(torch.optim.Adam),
    "sgd-tensor": with_tensor(fastnn.optim.SGD),
}


def reason(step: fastnn.TrainStep, *batch: Tensor) -> str | None:
    """Why a step ran eagerly; None if it was a replay."""
    return next(d.reason for d in fastnn.explain(step, *batch).decisions if d.op == "train_step")
