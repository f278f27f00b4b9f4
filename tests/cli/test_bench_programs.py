"""The training updates that ``fastnn bench --programs`` measures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastnn.cli import bench

programs = bench.load_benchmarks("programs").PROGRAMS
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


@pytest.mark.parametrize(
    "program", [p for p in programs if p.twin and p.quick], ids=lambda program: program.name
)
def test_the_twin_in_jax_takes_the_same_steps(peers: Any, program: Any) -> None:
    if "JAX" not in peers.present:
        pytest.skip(peers.absent["JAX"])
    work = case.Foreign(program.twin, program.twin_arguments())
    call = peers.calls(case.Workload({}, 0.0, foreign=work))["JAX"]
    if program.random:  # by a generator of its own
        theirs = torch.stack([call()[0] for _ in range(48)])
        assert theirs[-16:].mean() < theirs[:16].mean()
        return
    theirs = torch.stack([call()[0] for _ in range(3)])
    torch.testing.assert_close(theirs, losses(program), rtol=1e-4, atol=1e-5)
