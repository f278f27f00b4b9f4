"""What a program keeps for what it computes, compared with the most that torch allocates at one time."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

import fastnn
from fastnn.cli.bench import load_benchmarks
from twins import classify

PROGRAMS = load_benchmarks("programs").PROGRAMS


def _peak(step: Any, *data: torch.Tensor) -> int:
    """The most bytes that a call has allocated at one time."""
    with torch.profiler.profile(profile_memory=True) as profile:
        step(*data)
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(nbytes for _, nbytes in changes))


def _ratio(eager: Any, *data: torch.Tensor) -> float:
    """The bytes of its program by the most that torch allocates at one time."""
    step = fastnn.capture(eager, native=True, check=False)
    for _ in range(2):
        step(*data)
    (program,) = step.programs
    return program.arena_bytes / _peak(eager, *data)


@pytest.mark.parametrize(
    "middle",
    [[], [nn.BatchNorm1d(256), nn.Dropout(0.1)], [nn.GELU(), nn.Linear(256, 256), nn.LayerNorm(256)]],
    ids=["plain", "normalised", "deep"],
)
def test_a_classifier_needs_hardly_more_memory_than_in_torch(middle: list[nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), *middle, nn.Linear(256, 10))
    step = classify(model, torch.optim.Adam(model.parameters()))
    assert _ratio(step, torch.randn(128, 64), torch.randint(10, (128,))) <= 1.5


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_so_do_updates_as_people_write_them(program: Any) -> None:
    update, data = program.make()
    assert _ratio(update, *data) <= 1.5
