"""Settings: defaults, refusals, and the round trip through JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from fastnn.training.config import TrainConfig


def test_through_json_and_back() -> None:
    config = TrainConfig(hidden=(3, 4), lr=0.1, train_samples=7)
    assert TrainConfig(**json.loads(json.dumps(asdict(config)))) == config


def test_the_rate_follows_the_schedule_unless_given() -> None:
    assert TrainConfig().lr == 5e-3
    assert TrainConfig(schedule="constant").lr == 1e-3
    assert TrainConfig(schedule="constant", lr=0.5).lr == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "linear"}, "schedule: expected one of constant, cosine, onecycle, got 'linear'"),
        ({"dtype": "int8"}, "dtype: expected one of float32, .*, got 'int8'"),
        ({"lr": -1.0}, r"lr: expected a positive number, got -1\.0"),
        ({"lr": float("nan")}, "lr: expected a positive number, got nan"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"batch_size": -3}, "batch_size: expected at least 1, got -3"),
        ({"hidden": (8, 0)}, r"hidden: expected widths of at least 1, got \(8, 0\)"),
        ({"target": 0.0}, r"target: expected an accuracy above 0 and at most 1, got 0\.0"),
        ({"target": 98}, "target: expected an accuracy above 0 and at most 1, got 98"),
        ({"train_samples": 0}, "train_samples: expected at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_disagreements_are_named() -> None:
    found = TrainConfig(seed=1, hidden=(8,)).disagreements(TrainConfig(seed=2, hidden=(8, 8)))
    assert found == ["hidden: (8,), not (8, 8)", "seed: 1, not 2"]


def test_the_target_may_change() -> None:
    assert TrainConfig(target=0.9).disagreements(TrainConfig(target=0.8)) == []


def test_only_a_constant_rate_leaves_the_epochs_open() -> None:
    assert TrainConfig(epochs=1).disagreements(TrainConfig(epochs=2)) == ["epochs: 1, not 2"]
    constant = [TrainConfig(epochs=epochs, schedule="constant") for epochs in (1, 2)]
    assert constant[0].disagreements(constant[1]) == []
