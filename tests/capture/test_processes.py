"""Captured functions in other processes, and with several threads."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import fastnn
from twins import Twins, batch, classify, net, same


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_made_by_fork_goes_on_with_the_programs() -> None:
    twins = Twins(classify, net(nn.LayerNorm(16)), torch.optim.Adam)
    for _ in range(4):
        twins.call(*batch())
    (program,) = twins.programs
    runs = program.native.runs

    def child() -> None:
        twins.call(*batch())
        assert program.native.runs == runs + 1

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    twins.call(*batch())


def test_every_number_of_threads_gives_the_same_bits() -> None:
    def trained(threads: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(64, 256), nn.BatchNorm1d(256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 3)
        )
        optimizer = torch.optim.AdamW(model.parameters())
        step = fastnn.capture(classify(model, optimizer), native=True)
        losses = []
        for i in range(6):
            torch.set_num_threads(threads if i > 2 else 1)  # the first steps are torch's
            losses.append(step(torch.randn(512, 64), torch.randint(0, 3, (512,))))
        assert len(step.programs) == 1
        return [*losses, *model.parameters()]

    before = torch.get_num_threads()
    try:
        one, *others = [trained(n) for n in (1, 2, 3)]
    finally:
        torch.set_num_threads(before)
    for other in others:
        same(other, one, rtol=0, atol=0)


def _averages(model: nn.Module) -> Callable[..., Any]:
    def mean(x: torch.Tensor) -> torch.Tensor:
        result = model(x).detach().mean()
        dist.all_reduce(result)
        return result

    return mean


def _parallel(model: nn.Module) -> Callable[..., Any]:
    parallel = nn.parallel.DistributedDataParallel(model)
    return lambda x: parallel(x).detach().mean()


@pytest.mark.parametrize(
    ("make", "reason"), [(_averages, "all_?reduce"), (_parallel, "DistributedDataParallel")]
)
def test_what_talks_to_other_processes_is_refused(
    make: Callable[[nn.Module], Callable[..., Any]], reason: str, tmp_path: Any
) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        fn = make(nn.Linear(3, 2))
        captured = fastnn.capture(fn)
        x = torch.ones(4, 3)
        with pytest.warns(fastnn.EagerStepWarning, match=reason):
            results = [captured(x) for _ in range(4)]
        same(results, [fn(x)] * 4)
        assert captured.programs == ()
    finally:
        dist.destroy_process_group()
