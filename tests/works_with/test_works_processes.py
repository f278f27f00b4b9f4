"""docs/works-with.md: several processes and several threads."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import fastnn
from page import Cell, line
from pairs import EAGER, IN, OUT, Pair, Training, batch, check, network

pytestmark = EAGER

HERE = Path(__file__).parent
FORK_AND_SPAWN = "fork and spawn"


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
@line(FORK_AND_SPAWN)
def test_child_processes(cell: Cell, method: str) -> None:
    error = run_in_child(method)[cell.column]
    assert error is None, error


@functools.cache
def run_in_child(method: str) -> dict[str, str | None]:
    """What went wrong in each column, in one process with all of them."""
    package = Path(fastnn.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{HERE}", "FASTNN_ALWAYS_NATIVE": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "child_processes.py"), method, FORK_AND_SPAWN],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Reads its rows through `change`, in whichever process."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(24, IN, dtype=torch.float64, generator=generator)
        self.y = torch.randint(OUT, (24,), generator=generator)
        self.change = change

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.change(self.x[i]), self.y[i]


@line("workers of a DataLoader")
def test_data_loader_workers(cell: Cell) -> None:
    """Workers use fastnn themselves, and their batches are trained on."""
    pair = Pair(cell.column)
    pair.steps()
    torch.relu(torch.ones(4))
    loaders = [
        DataLoader(Rows(change), batch_size=6, num_workers=2)
        for change in (fastnn.functional.relu, torch.relu)
    ]
    for mine, theirs in zip(*loaders, strict=True):
        for ours, torchs in zip(mine, theirs, strict=True):
            assert torch.equal(ours, torchs)
        torch.testing.assert_close(pair.mine.step(*mine), pair.theirs.step(*theirs))
    pair.compare()
    pair.check(cell)


@line("several Python threads")
def test_threads_train_side_by_side(cell: Cell) -> None:
    """Each trains a model of its own, with the same result as alone."""
    batches = [batch() for _ in range(30)]

    def train(training: Training) -> None:
        for x, y in batches:
            training.step(x, y)

    def made() -> list[Training]:
        found = []
        for seed in range(4):
            torch.manual_seed(seed)
            found.append(Training(cell.column, network()))
        return found

    alone, together = made(), made()
    for training in alone:
        train(training)
    failed: list[Any] = []

    def in_thread(training: Training) -> None:
        try:
            train(training)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=in_thread, args=(training,)) for training in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    # To the bit; but while one thread records, captured functions of others run as written.
    close = {} if cell.column == "capture" else {"rtol": 0.0, "atol": 0.0}
    for mine, want in zip(together, alone, strict=True):
        torch.testing.assert_close(mine.model.state_dict(), want.model.state_dict(), **close)
    for x, y in batches[:4]:  # what was recorded concurrently with others may be recorded again
        together[0].step(x, y)
    check(cell, together[0].step, *batches[0])
