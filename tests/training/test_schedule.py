"""Learning-rate schedules."""

from __future__ import annotations

import pytest
import torch

from fastnn.training.schedule import lr_at

STEPS, HIGHEST = 200, 0.005


def rates(schedule: str, steps: int = STEPS) -> list[float]:
    return [lr_at(schedule, step, steps, HIGHEST) for step in range(steps)]


def test_a_constant_rate_stays() -> None:
    assert set(rates("constant")) == {HIGHEST}


def peer_rates(make) -> list[float]:
    """The rates of one of torch's own schedulers."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=HIGHEST)
    scheduler = make(optimizer)
    values = []
    for _ in range(STEPS):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        if len(values) == STEPS - 1 and isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR):
            values.append(optimizer.param_groups[0]["lr"])
            break
    return values


def test_cosine_is_torchs() -> None:
    peer = peer_rates(lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS))
    # torch computes each rate from the one before: STEPS roundings of some eps each.
    assert rates("cosine") == pytest.approx(peer, rel=1e-10, abs=HIGHEST * STEPS * 2.3e-16)


def test_onecycle_is_torchs() -> None:
    peer = peer_rates(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, HIGHEST, total_steps=STEPS, cycle_momentum=False
        )
    )
    # torch's turning point is the fractional step 0.3 * STEPS - 1, ours the same fraction of the way.
    assert rates("onecycle") == pytest.approx(peer, abs=0.02 * HIGHEST)
    assert rates("onecycle")[0] == pytest.approx(HIGHEST / 25)
    assert rates("onecycle")[-1] == pytest.approx(HIGHEST * 4e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 1000])
def test_rates_are_positive_and_bounded_for_any_length(schedule: str, steps: int) -> None:
    values = rates(schedule, steps)
    assert all(0 < value <= HIGHEST for value in values)
    assert max(values) >= HIGHEST * 0.2  # with two steps, neither is at the peak
