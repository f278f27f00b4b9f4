"""`torch.distributed.checkpoint`: torch's optimizers load what fastnn's save, and vice versa."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from test_sharded import OPTIMIZERS, sharded
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import fastnn
from processes import Processes
from shards import batch, difference, loop, model, reference, share

BEFORE, AFTER = 3, 3
LIBRARIES = {"fastnn": fastnn.optim, "torch": torch.optim}
BOTH_WAYS = pytest.mark.parametrize(
    ("saves", "loads"), [("fastnn", "torch"), ("torch", "fastnn"), ("fastnn", "fastnn")]
)


class Training:
    """A model and its optimizer, in shards or whole."""

    def __init__(self, library: str, name: str, rank: int | None, **options: Any) -> None:
        self.model: nn.Module = model() if rank is None else sharded()
        self.batch = batch() if rank is None else share(rank)
        make = getattr(LIBRARIES[library], name)
        self.optimizer = make(self.model.parameters(), lr=0.01, **OPTIMIZERS[name], **options)

    def train(self, steps: int) -> None:
        loop(self.model, self.optimizer, *self.batch, steps=steps)

    def save(self, folder: Path) -> None:
        states = get_state_dict(self.model, self.optimizer)
        dcp.save(dict(zip(("model", "optimizer"), states, strict=True)), checkpoint_id=folder)

    def load(self, folder: Path) -> None:
        states = dict(zip(("model", "optimizer"), get_state_dict(self.model, self.optimizer), strict=True))
        dcp.load(states, checkpoint_id=folder)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=states["model"],
            optim_state_dict=states["optimizer"],
        )


def continued(name: str, saves: tuple[str, int | None], loads: tuple[str, int | None], folder: Path) -> float:
    """The difference of a training saved and loaded halfway from an uninterrupted one in plain torch."""
    first = Training(saves[0], name, saves[1])
    first.train(BEFORE)
    first.save(folder)
    second = Training(loads[0], name, loads[1])
    second.load(folder)
    second.train(AFTER)
    expected = reference(getattr(torch.optim, name), steps=BEFORE + AFTER, **OPTIMIZERS[name])
    return difference(second.model, expected)


def in_each(rank: int, name: str, saves: str, loads: str, folder: Path, sharded_after: bool) -> float:
    return continued(name, (saves, rank), (loads, rank if sharded_after else None), folder)


@BOTH_WAYS
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_of_shards_pass_both_ways(
    processes: Processes, tmp_path: Path, name: str, saves: str, loads: str
) -> None:
    assert max(processes.run(in_each, name, saves, loads, tmp_path, True)) < 1e-12


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shards_are_loaded_whole(processes: Processes, tmp_path: Path, name: str) -> None:
    assert max(processes.run(in_each, name, "fastnn", "torch", tmp_path, False)) < 1e-12


def masters(rank: int, folder: Path) -> float:
    """Float32 master weights are saved with the rest, and continue."""
    made = []
    for steps in (BEFORE + AFTER, BEFORE, 0):
        training = Training("fastnn", "AdamW", None, master_weights=True)
        training.model.to(torch.bfloat16)
        training.batch = batch(torch.bfloat16)
        training.train(steps)
        made.append(training)
    made[1].save(folder)
    made[2].load(folder)
    made[2].train(AFTER)
    return difference(made[2].model, made[0].model)


def test_masters_are_saved(processes: Processes, tmp_path: Path) -> None:
    assert processes.run(masters, tmp_path) == [0.0, 0.0]
