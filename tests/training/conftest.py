"""A small run on the bundled digits: eleven steps per epoch, the last batch short."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fastnn.data import Dataset
from fastnn.data.digits import load_digits
from fastnn.training.checkpoint import Checkpoint
from fastnn.training.config import TrainConfig
from fastnn.training.run import Run

MakeRun = Callable[..., Run]


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_digits()


@pytest.fixture
def make_run(digits: Dataset) -> MakeRun:
    def make(resume: Checkpoint | None = None, **settings: object) -> Run:
        chosen = {"hidden": (16,), "epochs": 3, "batch_size": 32, "train_samples": 330, **settings}
        return Run(TrainConfig(**chosen), digits, torch.device("cpu"), resume)

    return make
