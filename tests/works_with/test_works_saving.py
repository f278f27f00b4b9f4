"""docs/works-with.md: what is saved, copied and loaded."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from page import Cell, line
from pairs import EAGER, Pair, Training, batch, network

pytestmark = EAGER


Copier = Callable[[Any], Any]


def through_pickle(x: Any) -> Any:
    return pickle.loads(pickle.dumps(x))


def through_torch_save(x: Any) -> Any:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch_save])
@line("pickle and deepcopy")
def test_copies_train_the_same(cell: Cell, copied: Copier) -> None:
    """A copy made during training continues as the original does."""
    pair = Pair(cell.column)
    pair.steps(2)
    parts = (pair.mine.model, pair.mine.optimizer, pair.mine.loss)
    if cell.column == "step":
        pair.mine.step = copied(pair.mine.step)  # has all three
        parts = (pair.mine.step.model, pair.mine.step.optimizer, pair.mine.step.loss)
    else:
        parts = copied(parts)
    was = [type(part) for part in (pair.mine.model, pair.mine.optimizer)]
    pair.mine.model, pair.mine.optimizer, pair.mine.loss = parts
    assert [type(part) for part in parts[:2]] == was
    if cell.column != "step":
        pair.mine.renew()
    pair.steps()
    pair.check(cell)


def resume(pair: Pair, load: Callable[[Any], None]) -> Training:
    """A new training with the state loaded by `load`, paired with torch's."""
    pair.mine = Training(pair.mine.column, network())
    load(pair.mine)
    return pair.mine


@pytest.mark.parametrize("writer", ["mine", "theirs"])
@line("torch.save, and torch.load with weights_only")
def test_torch_save_keeps_all(cell: Cell, writer: str, tmp_path: Path) -> None:
    """A checkpoint of either is resumed by the other."""
    pair = Pair(cell.column)
    pair.steps()
    training = getattr(pair, writer)
    torch.save((training.model.state_dict(), training.optimizer.state_dict()), tmp_path / "checkpoint.pt")

    def load(training: Training) -> None:
        weights, state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        training.model.load_state_dict(weights)
        training.optimizer.load_state_dict(state)

    if writer == "mine":
        load(pair.theirs)
    resume(pair, load)
    pair.steps()
    pair.check(cell)


@pytest.mark.parametrize("writer", ["mine", "theirs"])
@line("safetensors")
def test_safetensors_keep_all(cell: Cell, writer: str, tmp_path: Path) -> None:
    """Weights written by one are read by the other, during training too."""
    safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    pair = Pair(cell.column, optimizer="SGD")
    pair.steps()
    path = tmp_path / "model.safetensors"
    safetensors.save_model(getattr(pair, writer).model, path)
    pair.steps()
    pair.each(lambda training: safetensors.load_model(training.model, path))
    pair.steps()
    x, _ = batch()
    torch.testing.assert_close(pair.mine.model(x), pair.theirs.model(x))
    pair.check(cell)
