"""Random training steps, captured, compared with the same steps run by torch."""

from __future__ import annotations

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
    eager, models, optimizers = program.make()
    step, twins, twin_optimizers = program.make()
    captured = fastnn.capture(step, keep_grad=program.keep_grad)
    # Some divide by almost 0: in float32 the self-check decides which differences that excuses.
    exact = program.dtype is torch.float64
    tolerances = {"rtol": 1e-7, "atol": 1e-8} if exact else {"rtol": 5e-2, "atol": 5e-2}
    values = list(zip(twins.state_dict().values(), models.state_dict().values(), strict=True))
    params = list(zip(twins.parameters(), models.parameters(), strict=True))
    for number in range(10):
        data = program.batch(number)
        torch.default_generator.manual_seed(number)  # torch.manual_seed would format the stack
        expected = eager(*data)
        torch.default_generator.manual_seed(number)
        with warnings.catch_warnings():
            warnings.simplefilter("error", fastnn.EagerStepWarning)
            got = captured(*data)
        same(got, expected, **tolerances)
        same(*zip(*values, strict=True), **tolerances)
        for mine, theirs in params:
            # Without keep_grad, gradients that the next call clears first are dropped.
            if program.keep_grad or mine.grad is not None:
                same(mine.grad, theirs.grad, **tolerances)
        for ours, torchs in zip(twin_optimizers, optimizers, strict=True):
            same([*ours.state.values()], [*torchs.state.values()], **tolerances)
            # Rounding errors must not grow from step to step: both continue from the same place.
            for mine, theirs in zip(ours.state.values(), torchs.state.values(), strict=True):
                mine.update({key: value.clone() for key, value in theirs.items()})
        for mine, theirs in values:
            mine.copy_(theirs)
        for mine, theirs in params:
            if mine.grad is not None and theirs.grad is not None:
                mine.grad.copy_(theirs.grad)
        # A training that diverges overflows next, to infinity or NaN by the order of sums.
        if any(theirs.abs().max() > 1e6 for _, theirs in params):
            break
    assert captured.programs
