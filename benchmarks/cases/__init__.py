"""The registered cases, one file for each op."""

from __future__ import annotations

from ..case import Case
from . import (
    clip,
    converted,
    cross_entropy,
    epoch,
    gram,
    linear,
    linear_cross_entropy,
    optimizers,
    polyak,
    products,
    programs,
    relu,
    step,
)


def all_cases() -> list[Case]:
    modules = (
        products,
        linear,
        relu,
        cross_entropy,
        linear_cross_entropy,
        gram,
        optimizers,
        clip,
        converted,
        polyak,
        step,
        epoch,
        programs,
    )
    return [case for module in modules for case in module.CASES]
