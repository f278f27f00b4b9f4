"""A run that two processes share: the numbers of a single process, and one of them writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastnn.data.digits import load_digits
from fastnn.training.checkpoint import Checkpoint
from fastnn.training.config import TrainConfig
from fastnn.training.distributed import Ranks
from fastnn.training.loop import Observer, train
from fastnn.training.run import Run
from processes import SIZE, Processes

# The last batch of an epoch has one row, of which one process gets none.
SMALL = {"hidden": (16,), "epochs": 3, "batch_size": 33, "train_samples": 331, "dtype": "float64"}
STEPS = 3 * 11
BOTH = pytest.mark.parametrize("native", [False, True], ids=["fastnn", "torch"])


def trained(
    rank: int,
    size: int,
    path: Path,
    settings: dict[str, Any],
    saved: Checkpoint | None = None,
    stop: tuple[int, int] = (-1, -1),
) -> dict[str, Any]:
    """The final state of a run; `stop`: the process that is interrupted, and after which step."""
    run = Run(TrainConfig(**settings), load_digits(), torch.device("cpu"), saved, Ranks(rank, size))

    def interrupted() -> bool:
        return run.ranks.any(rank == stop[0] and run.step >= stop[1])

    finished = train([run], [path.with_suffix(f".{rank}")], Observer(), interrupted)
    return {
        "finished": finished,
        "step": run.step,
        "losses": run.losses,
        "history": run.history,
        "backend": run.backend,
        "model": run.parts.model.state_dict(),
        "optimizer": run.parts.optimizer.state_dict()["state"],
    }


def shared(processes: Processes, *arguments: Any, **options: Any) -> dict[str, Any]:
    """The final state in the first process, and so in all."""
    first, *others = processes.run(trained, SIZE, *arguments, *options.values())
    for other in others:
        assert_same(first, other)
    return first


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert [one[key] for key in ("finished", "step", "losses", "history")] == [
        other[key] for key in ("finished", "step", "losses", "history")
    ]
    torch.testing.assert_close(one["model"], other["model"], rtol=0, atol=0)
    torch.testing.assert_close(one["optimizer"], other["optimizer"], rtol=0, atol=0)


def assert_near(one: dict[str, Any], other: dict[str, Any]) -> None:
    """In float64: only the order of sums differs, of some 64 terms."""
    assert one["step"] == other["step"]
    for key in ("model", "optimizer"):
        torch.testing.assert_close(one[key], other[key], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(torch.tensor(one["losses"]), torch.tensor(other["losses"]))


@BOTH
def test_two_processes_give_what_one_gives(processes: Processes, tmp_path: Path, native: bool) -> None:
    settings = {**SMALL, "native": native}
    assert_near(shared(processes, tmp_path / "two", settings), trained(0, 1, tmp_path / "one", settings))


def test_sixteen_bits_train_in_two_processes(processes: Processes, tmp_path: Path) -> None:
    settings = {**SMALL, "dtype": "bfloat16"}
    two = shared(processes, tmp_path / "two", settings)
    one = trained(0, 1, tmp_path / "one", settings)
    torch.testing.assert_close(torch.tensor(two["losses"]), torch.tensor(one["losses"]), rtol=0.1, atol=0.1)


def test_the_report_names_the_number_of_processes(processes: Processes, tmp_path: Path) -> None:
    backend = shared(processes, tmp_path / "two", SMALL)["backend"]
    assert "op by op (2 processes sum their gradients)" in backend or backend.startswith("torch")


def test_one_process_writes_all_of_it(processes: Processes, tmp_path: Path) -> None:
    two = shared(processes, tmp_path / "two", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["two.0"]
    saved = Checkpoint.load(tmp_path / "two.0")
    assert saved.step == STEPS
    torch.testing.assert_close(saved.model, two["model"], rtol=0, atol=0)


def test_all_stop_where_one_is_interrupted(processes: Processes, tmp_path: Path) -> None:
    two = shared(processes, tmp_path / "two", SMALL, saved=None, stop=(1, 5))
    assert not two["finished"]
    assert 5 <= two["step"] < 11
    assert Checkpoint.load(tmp_path / "two.0").step == two["step"]


def test_all_stop_at_the_target(processes: Processes, tmp_path: Path) -> None:
    two = shared(processes, tmp_path / "two", {**SMALL, "target": 0.01})
    assert two["step"] == 2


def compared(rank: int, folder: Path) -> list[tuple[str, int, list[float]]]:
    ranks = Ranks(rank, SIZE)
    settings = {**SMALL, "target": 0.5}
    runs = [
        Run(TrainConfig(**settings, native=native), load_digits(), torch.device("cpu"), ranks=ranks)
        for native in (False, True)
    ]
    train(runs, [folder / run.name for run in runs], Observer())
    return [(run.name, run.step, run.losses) for run in runs]


def test_two_runs_that_are_compared(processes: Processes, tmp_path: Path) -> None:
    first, second = processes.run(compared, tmp_path)
    assert first == second
    assert [name for name, _, _ in first] == ["fastnn", "torch"]
    assert first[0][1] == first[1][1]  # the same training
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fastnn", "torch"]


@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize("after", [1, 2])
def test_another_number_of_processes_continues(
    processes: Processes, tmp_path: Path, before: int, after: int
) -> None:
    path = tmp_path / "c"
    options = {"saved": None, "stop": (0, 14)}
    if before == 1:
        trained(0, 1, path, SMALL, **options)
    else:
        shared(processes, path, SMALL, **options)
    saved = Checkpoint.load(path.with_suffix(".0"))
    assert 14 <= saved.step < STEPS
    whole = trained(0, 1, tmp_path / "whole", SMALL)
    if after == 1:
        assert_near(trained(0, 1, path, SMALL, saved), whole)
        return
    resumed = shared(processes, path, SMALL, saved=saved)
    assert_near(resumed, whole)
    if before == 2:
        uninterrupted = shared(processes, tmp_path / "whole", SMALL)
        torch.testing.assert_close(resumed["model"], uninterrupted["model"], rtol=0, atol=0)
