"""fastnn's modules and optimizers under FSDP2 and ZeroRedundancyOptimizer: plain torch's numbers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastnn
from processes import Processes
from shards import batch, difference, loop, model, reference, share, whole

# Whose first steps do not depend on rounding: RMSprop divides by the root of what may be nearly 0.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "SGD": {"momentum": 0.9},
    "RMSprop": {"eps": 1e-4},
    "Adagrad": {},
}


def sharded(inner: bool = False, dtype: torch.dtype = torch.float64) -> nn.Module:
    """`inner`: also shard each layer separately."""
    from torch.distributed.fsdp import fully_shard

    made = model(dtype)
    if inner:
        for layer in made:
            if list(layer.parameters()):
                fully_shard(layer)
    fully_shard(made)
    return made


def trained_sharded(rank: int, name: str, inner: bool) -> tuple[float, dict[str, Any]]:
    options = OPTIMIZERS[name]
    made = sharded(inner)
    optimizer = getattr(fastnn.optim, name)(made.parameters(), lr=0.01, **options)
    explained = fastnn.explain(loop, made, optimizer, *share(rank))
    apart = difference(made, reference(getattr(torch.optim, name), **options))
    return apart, dict(explained.decisions)


@pytest.mark.parametrize("inner", [False, True], ids=["whole", "layers"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fully_shard_trains_as_plain_torch_does(processes: Processes, name: str, inner: bool) -> None:
    for apart, ops in processes.run(trained_sharded, name, inner):
        assert apart < 1e-12
        assert ops["linear" if inner else "mlp"] is None
        assert ops["linear_backward" if inner else "mlp_backward"] is None


def trained_zero(rank: int, name: str, views: bool) -> tuple[float, dict[str, Any], int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of torch.jit
        from torch.distributed.optim import ZeroRedundancyOptimizer

    options = OPTIMIZERS[name]
    made = model()
    wrapped = DistributedDataParallel(made)
    optimizer = ZeroRedundancyOptimizer(
        made.parameters(),
        getattr(fastnn.optim, name),
        parameters_as_bucket_view=views,
        lr=0.01,
        **options,
    )
    explained = fastnn.explain(loop, wrapped, optimizer, *share(rank))
    apart = difference(made, reference(getattr(torch.optim, name), **options))
    optimizer.consolidate_state_dict(0)
    states = len(optimizer.state_dict()["state"]) if rank == 0 else 4
    return apart, dict(explained.decisions), states


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zero_redundancy_optimizer(processes: Processes, name: str, views: bool) -> None:
    op = "adam" if name == "AdamW" else name.lower()
    for apart, ops, states in processes.run(trained_zero, name, views):
        assert apart < 1e-12
        assert ops["mlp"] is None
        assert ops[op] is None
        assert states == 4


def clipped(rank: int) -> tuple[float, float]:
    made, plain = sharded(), model()
    nn.functional.cross_entropy(made(share(rank)[0]), share(rank)[1]).backward()
    x, y = batch()
    nn.functional.cross_entropy(plain(x), y).backward()
    norm = whole(fastnn.nn.utils.clip_grad_norm_(made.parameters(), 0.01))
    expected = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.01)
    pairs = zip(made.parameters(), plain.parameters(), strict=True)
    return (norm - expected).abs().item(), max((whole(p.grad) - q.grad).abs().max().item() for p, q in pairs)


def test_clipping_of_shards_is_by_the_norm_of_all(processes: Processes) -> None:
    for norm, gradient in processes.run(clipped):
        assert norm < 1e-12
        assert gradient < 1e-15


def averaged(rank: int) -> float:
    target, source, expected = sharded(), sharded(), model()
    with torch.no_grad():
        for p in source.parameters():
            p.add_(1)
        for p in expected.parameters():
            p.add_(0.25)
    fastnn.optim.polyak_(target.parameters(), source.parameters(), 0.25)
    return difference(target, expected)


def test_soft_update_of_shards(processes: Processes) -> None:
    assert max(processes.run(averaged)) < 1e-12


def float32_state(rank: int, name: str) -> tuple[float, set[torch.dtype]]:
    """A bfloat16 model, its masters rounded: those of one process differ by the order of a sum."""
    options = {**OPTIMIZERS[name], "lr": 0.01, "master_weights": True}
    made, plain = sharded(dtype=torch.bfloat16), model(torch.bfloat16)
    optimizers = [getattr(fastnn.optim, name)(m.parameters(), **options) for m in (made, plain)]
    loop(made, optimizers[0], *share(rank, torch.bfloat16), steps=1)
    loop(plain, optimizers[1], *batch(torch.bfloat16), steps=1)
    state = optimizers[0].state[next(made.parameters())]
    return difference(made, plain), {value.dtype for key, value in state.items() if key != "step"}


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_masters_of_shards(processes: Processes, name: str) -> None:
    for apart, dtypes in processes.run(float32_state, name):
        assert apart < 0.03  # a step of Adagrad is 0.01 for any gradient, and its sign may flip
        assert dtypes == {torch.float32}


def stepped(rank: int) -> tuple[float, str]:
    made = sharded()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="TrainStep does not average gradients")
        warnings.filterwarnings("ignore", category=fastnn.EagerStepWarning)
        optimizer = fastnn.optim.Adam(made.parameters(), lr=0.01)
        step = fastnn.TrainStep(made, nn.CrossEntropyLoss(), optimizer)
        for _ in range(5):
            step(*share(rank))
        explained = fastnn.explain(step, *share(rank))
    return difference(made, reference(torch.optim.Adam)), dict(explained.decisions)["train_step"]


def test_a_step_of_shards_is_eager(processes: Processes) -> None:
    for apart, reason in processes.run(stepped):
        assert apart < 1e-12
        assert "FSDPMLP has a hook" in reason


def captured(rank: int) -> tuple[float, str]:
    made = sharded()
    optimizer = fastnn.optim.Adam(made.parameters(), lr=0.01)

    @fastnn.capture
    def update() -> None:
        loop(made, optimizer, *share(rank), steps=1)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=fastnn.EagerStepWarning)
        for _ in range(5):
            update()
        explained = fastnn.explain(update)
    return difference(made, reference(torch.optim.Adam)), dict(explained.decisions)["capture"]


def test_capture_refuses_shards(processes: Processes) -> None:
    for apart, reason in processes.run(captured):
        assert apart < 1e-12
        assert "the collective" in reason
