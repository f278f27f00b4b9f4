"""Random training steps, captured, compared with the same steps run by torch."""

from __future__ import annotations

import copy
import os
import warnings

import pytest
import torch

import fastnn
from random_programs import Program
from twins import same

# FASTNN_RANDOM_PROGRAMS=10000 for a longer run still.
_COUNT = int(os.environ.get("FASTNN_RANDOM_PROGRAMS", "2000"))
_SEEDS = [*range(30), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(30, _COUNT))]


@pytest.mark.parametrize("seed", _SEEDS)
def test_ten_steps_of_a_random_program_equal_eager(seed: int) -> None:
    program = Program(seed)
    eager, model, optimizer = program.make()
    step, twin, twin_optimizer = program.make()
    captured = fastnn.capture(step, keep_grad=program.keep_grad)
    # Some divide by almost 0: in float32 the self-check decides which differences that excuses.
    exact = program.dtype is torch.float64
    tolerances = {"rtol": 1e-7, "atol": 1e-8} if exact else {"rtol": 5e-2, "atol": 5e-2}
    for number in range(10):
        data = program.batch(number)
        torch.manual_seed(number)
        expected = eager(*data)
        torch.manual_seed(number)
        with warnings.catch_warnings():
            warnings.simplefilter("error", fastnn.EagerStepWarning)
            got = captured(*data)
        same(got, expected, **tolerances)
        same([*twin.state_dict().values()], [*model.state_dict().values()], **tolerances)
        if program.keep_grad:
            same([p.grad for p in twin.parameters()], [p.grad for p in model.parameters()], **tolerances)
        same(twin_optimizer.state_dict()["state"], optimizer.state_dict()["state"], **tolerances)
        # Rounding errors must not grow from step to step: both continue from the same place.
        twin.load_state_dict(model.state_dict())
        for mine, theirs in zip(twin_optimizer.state.values(), optimizer.state.values(), strict=True):
            mine.update(copy.deepcopy(theirs))
        for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
            if mine.grad is not None and theirs.grad is not None:
                mine.grad.copy_(theirs.grad)
    assert captured.programs
