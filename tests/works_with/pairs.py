"""A training with one part of fastnn, and the same one in plain torch."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastnn
from page import Cell

IN, HIDDEN, OUT = 8, 16, 4
EAGER = pytest.mark.filterwarnings("ignore::fastnn.EagerStepWarning")  # where the page says so
Body = Callable[[Any, Any, Any, Tensor, Tensor], Tensor]
Around = Callable[[], contextlib.AbstractContextManager[Any]]


def network() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Linear(IN, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, OUT)
    ).double()


def batch(rows: int = 12, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, IN, dtype=dtype, device="cpu"), torch.randint(OUT, (rows,), device="cpu")


def usual_step(model: Any, loss_function: Any, optimizer: Any, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss: Tensor = loss_function(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


class Training:
    """A model, its optimizer and a step of its training.

    Args:
        column: which part of fastnn is used, as in `page.COLUMNS`; None for nothing.
        model: of torch's modules.
        body: the step, in all columns but that of `TrainStep`, which has its own.
        optimizer: the name of its class.
        loss: called with output and target.
    """

    def __init__(
        self,
        column: str | None,
        model: torch.nn.Module,
        body: Body = usual_step,
        optimizer: str = "Adam",
        loss: Any = None,
    ) -> None:
        self.column, self.body = column, body
        modules = fastnn.nn if column == "modules" else torch.nn
        self.model = fastnn.convert(model) if column == "modules" else model
        self.loss = modules.CrossEntropyLoss() if loss is None else loss
        kinds = fastnn.optim if column == "optimizers" else torch.optim
        self.optimizer = getattr(kinds, optimizer)(self.model.parameters(), lr=0.01)
        self.renew()

    def renew(self) -> None:
        """Make a new step of the present model and optimizer."""
        self.step: Any = self._as_written
        if self.column == "step":
            self.step = fastnn.TrainStep(self.model, self.loss, self.optimizer)
        elif self.column == "capture":
            self.step = fastnn.capture(self._as_written)

    def _as_written(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(self.model, self.loss, self.optimizer, x, y)


class Pair:
    """Two trainings from the same state on the same batches; the options are those of `Training`."""

    def __init__(self, column: str, model: Callable[[], torch.nn.Module] = network, **options: Any) -> None:
        theirs = model()
        self.mine = Training(column, copy.deepcopy(theirs), **options)
        self.theirs = Training(None, theirs, **options)

    def each(self, change: Callable[[Training], Any]) -> None:
        """Apply a change to both."""
        for training in (self.mine, self.theirs):
            change(training)

    def steps(self, count: int = 5, around: Around = contextlib.nullcontext, **tolerances: float) -> None:
        """Take steps and compare: enough that a recorded one is native afterwards."""
        for _ in range(count):
            x, y = batch(dtype=next(self.theirs.model.parameters()).dtype)
            with around():
                losses = [training.step(x, y) for training in (self.mine, self.theirs)]
            torch.testing.assert_close(*losses, **tolerances)
        self.compare(**tolerances)

    def compare(self, **tolerances: float) -> None:
        """The models have the same parameters and buffers, the optimizers the same state."""
        mine, theirs = self.mine, self.theirs
        torch.testing.assert_close(mine.model.state_dict(), theirs.model.state_dict(), **tolerances)
        states = [training.optimizer.state_dict()["state"] for training in (mine, theirs)]
        torch.testing.assert_close(*states, **tolerances)

    def check(self, cell: Cell, around: Around = contextlib.nullcontext) -> None:
        """A further step runs where the page says."""
        x, y = batch(dtype=next(self.theirs.model.parameters()).dtype)
        with around():
            check(cell, self.mine.step, x, y)
            self.theirs.step(x, y)


def check(cell: Cell, run: Callable[..., Any], *args: Any) -> Any:
    """Call `run` and compare where it ran with what the page says; returns the result."""
    if cell.verdict == "refused":
        with pytest.raises((RuntimeError, TypeError, ValueError), match=re.escape(cell.reason)):
            run(*args)
        return None
    counts = [program.native.runs for program in getattr(run, "programs", ())]
    explained = fastnn.explain(run, *args)
    reasons = {d.reason for d in explained.decisions if _is_of(cell.column, d.op)}
    if cell.column == "capture" and not reasons:
        after = [program.native.runs for program in explained.programs]
        reasons = {None} if sum(after) == sum(counts) + 1 else set()
    assert reasons, f"nothing of fastnn ran:\n{explained}"
    why = {reason for reason in reasons if reason is not None}
    if cell.verdict == "native":
        assert not why
    else:
        assert why
        assert all(cell.reason in reason for reason in why), why
    return explained.result


OPTIMIZER_OPS = {"adam", "adamw", "sgd", "adagrad", "rmsprop"}


def _is_of(column: str, op: str) -> bool:
    if column in ("step", "capture"):
        return op == {"step": "train_step", "capture": "capture"}[column]
    return (op in OPTIMIZER_OPS) == (column == "optimizers")
