"""The training updates that ``fastnn bench --programs`` measures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastnn.cli import bench

programs = bench.load_benchmarks("programs").PROGRAMS
CHECKED_CALLS = bench.load_benchmarks("programs.program").CHECKED_CALLS
roster = bench.load_benchmarks("peers.roster")
case = bench.load_benchmarks("case")


def losses(program: Any, calls: int = 3) -> torch.Tensor:
    update, arguments = program.make()
    torch.manual_seed(0)
    answers = [update(*arguments) for _ in range(calls)]
    assert not any(answer.requires_grad for answer in answers)
    return torch.stack(answers)


@pytest.mark.parametrize("program", programs, ids=lambda program: program.name)
def test_an_update_is_the_same_each_time_it_is_made(program: Any) -> None:
    first = losses(program)
    assert first.isfinite().all()
    assert torch.equal(first, losses(program))
    assert len(first.unique()) > 1  # it learns, or draws


@pytest.fixture(scope="module")
def peers() -> Any:
    pytest.importorskip("jax")
    with roster.assemble(1, quick=True) as assembled:
        yield assembled


@pytest.fixture
def jax(peers: Any) -> Callable[[Any], Callable[[], torch.Tensor]]:
    """The twin of a program."""
    if "JAX" not in peers.present:
        pytest.skip(peers.absent["JAX"])

    def twin(program: Any) -> Callable[[], torch.Tensor]:
        call = peers.calls(case.Workload({}, 0.0, foreign=case.Foreign(program.twin, program.for_others())))
        return lambda: call["JAX"]()[0]

    return twin


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(p, id=p.name, marks=() if p.name.startswith(("SAC", "PPO")) else pytest.mark.long)
        for p in programs
        if p.learns and "256x256" not in p.name
    ],
)
def test_the_twin_in_jax_takes_the_same_steps(jax: Any, program: Any) -> None:
    call = jax(program)
    if program.random:  # with a generator of its own
        theirs = torch.stack([call() for _ in range(48)])
        assert theirs[-16:].mean() < theirs[:16].mean()
        torch.testing.assert_close(theirs[:16].mean(), losses(program, 16).mean(), rtol=0.03, atol=0)
        return
    torch.testing.assert_close(torch.stack([call() for _ in range(3)]), losses(program), rtol=1e-4, atol=1e-5)


def test_the_twin_in_jax_acts_as_we_do(jax: Any) -> None:
    (program,) = (p for p in programs if not p.learns)
    (act, arguments), twin = program.make(), jax(program)
    for seed in range(CHECKED_CALLS):  # with their noise passed in
        torch.manual_seed(seed)
        torch.testing.assert_close(twin(), act(*arguments), rtol=1e-5, atol=1e-6)
    theirs, ours = (torch.stack([each() for _ in range(1000)]) for each in (twin, lambda: act(*arguments)))
    for quantile in (0.1, 0.5, 0.9):
        torch.testing.assert_close(
            theirs.quantile(quantile, 0), ours.quantile(quantile, 0), rtol=0, atol=0.15
        )
