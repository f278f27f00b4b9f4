"""Learning-rate schedules as functions of the step, so that there is no state to save."""

from __future__ import annotations

import math

# One-cycle as in Smith and Topin, "Super-convergence" (arXiv:1708.07120), with cosine flanks.
_WARM_UP = 0.3  # part of the run in which the rate rises
_FIRST = 1 / 25  # the first rate, as a part of the highest
_LAST = 1e-4 / 25  # the last


def lr_at(schedule: str, step: int, steps: int, highest: float) -> float:
    """The learning rate of step number `step` (from 0) of a run of `steps` steps.

    ``constant``: always `highest`. ``cosine``: ``highest * (1 + cos(pi * step / steps)) / 2``, from `highest`
    down towards 0. ``onecycle``: half a cosine up from ``highest / 25`` over the first 30% of the run, then
    half a cosine down to ``highest * 4e-6`` at the last step.
    """
    if schedule == "constant":
        return highest
    if schedule == "cosine":
        return _half_cosine(highest, 0.0, step / steps)
    top = _WARM_UP * (steps - 1)
    if step < top:
        return _half_cosine(highest * _FIRST, highest, step / top)
    return _half_cosine(highest, highest * _LAST, (step - top) / max(steps - 1 - top, 1))


def _half_cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
