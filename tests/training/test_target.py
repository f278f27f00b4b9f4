"""Training to a target accuracy: when the model is tested, where the run stops, and the time it reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from fastnn.data import Batches
from fastnn.training import run as run_module
from fastnn.training.checkpoint import Checkpoint
from fastnn.training.evaluate import Evaluation
from fastnn.training.report import comparison, metrics, outcome, speed_up, table, write_report
from fastnn.training.run import Run

BOTH = pytest.mark.parametrize("native", [False, True], ids=["fastnn", "torch"])
GRID = [2, 3, 5, 6, 7, 9, 10, 11]  # eighths of eleven steps, rounded up

MakeTimed = Callable[..., Run]


@pytest.fixture
def make_timed(make_run, monkeypatch: pytest.MonkeyPatch) -> MakeTimed:
    """Makes runs whose clock adds one second per step and a hundred per test, with the given accuracies."""
    now = [0.0]
    monkeypatch.setattr(run_module.time, "perf_counter", lambda: now[0])

    def make(accuracies: list[float], resume: Checkpoint | None = None, **settings: object) -> Run:
        run: Run = make_run(resume, **settings)
        take, results = run._take, iter(accuracies)

        def timed(batches: Batches, first: int, rates: Sequence[float]) -> torch.Tensor:
            now[0] += len(rates)
            return take(batches, first, rates)

        def evaluate(*_: object) -> Evaluation:
            now[0] += 100
            return Evaluation(torch.zeros(1, dtype=torch.int64), torch.ones(1), next(results))

        run._take = timed
        run.evaluate = evaluate  # type: ignore[method-assign]
        return run

    return make


def finish(run: Run, turn: int = 4) -> Run:
    while not run.finished:
        if run.test_due:
            run.test()
        else:
            run.advance(turn)
    return run


@pytest.mark.parametrize("turn", [1, 4, 50])
def test_it_is_tested_eight_times_an_epoch(make_run, turn: int) -> None:
    run = finish(make_run(target=1.0, epochs=2), turn)
    assert run.seconds_to_target is None
    assert [test.step for test in run.history] == [*GRID, *(11 + step for step in GRID)]
    assert [test.epoch for test in run.history] == [test.step / 11 for test in run.history]


def test_an_epoch_of_fewer_steps_is_tested_after_each(make_run) -> None:
    run = finish(make_run(target=1.0, epochs=2, batch_size=110))
    assert [test.step for test in run.history] == [1, 2, 3, 4, 5, 6]


@BOTH
def test_it_stops_at_the_first_test_that_meets_the_target(make_timed, native: bool) -> None:
    run = finish(make_timed([0.5, 0.97, 0.98], target=0.98, native=native))
    assert run.step == 5
    assert run.seconds_to_target == run.train_seconds == 5.0
    assert [test.train_seconds for test in run.history] == [2.0, 1.0, 2.0]
    assert run.advance(4, lambda: True) == 1, "what was met is a test, not a wall"


def test_a_target_met_by_the_last_test_is_met(make_timed) -> None:
    run = finish(make_timed([0.1] * 7 + [0.9], target=0.9, epochs=1))
    assert (run.step, run.seconds_to_target) == (11, 11.0)


def test_a_target_that_is_not_met_takes_all_epochs(make_timed) -> None:
    run = finish(make_timed([0.979] * 24, target=0.98))
    assert run.step == run.steps == 33
    assert run.seconds_to_target is None
    assert outcome(run) == "fastnn: 98% test accuracy was not reached; the best was 97.90%"


@BOTH
def test_tests_change_nothing_in_the_training(make_run, native: bool) -> None:
    often, seldom = finish(make_run(target=1.0, native=native)), finish(make_run(native=native))
    assert often.losses == seldom.losses
    for name, value in seldom.parts.model.state_dict().items():
        assert torch.equal(value, often.parts.model.state_dict()[name])


@BOTH
@pytest.mark.parametrize("stop", [0, 1, 2, 3, 4, 12, 13])
def test_a_resumed_run_stops_where_the_whole_one_does(
    make_run, tmp_path: Path, native: bool, stop: int
) -> None:
    settings = {"native": native, "target": 0.55, "batch_size": 16, "hidden": (64,)}
    whole, first = finish(make_run(**settings)), make_run(**settings)
    assert whole.history[0].step < 13 < whole.step < whole.steps, "the stops lie before the end"
    while first.step < stop:
        if first.test_due:
            first.test()
        first.advance(stop - first.step)
    first.checkpoint().save(tmp_path / "c")
    resumed = finish(make_run(Checkpoint.load(tmp_path / "c"), **settings))
    assert resumed.losses == whole.losses
    assert [(test.step, test.test_loss) for test in resumed.history] == [
        (test.step, test.test_loss) for test in whole.history
    ]
    for name, value in whole.parts.model.state_dict().items():
        assert torch.equal(value, resumed.parts.model.state_dict()[name])


def test_a_run_that_met_its_target_continues_to_a_higher_one(make_timed) -> None:
    saved = finish(make_timed([0.5, 0.9], target=0.9)).checkpoint()
    same = make_timed([], saved, target=0.9)
    assert same.finished
    assert same.seconds_to_target == 3.0
    higher = finish(make_timed([0.91, 0.95], saved, target=0.95))
    assert [test.step for test in higher.history] == GRID[:4]
    assert higher.seconds_to_target == 6.0


def test_a_run_that_began_without_a_target_is_tested_from_here_on(make_timed) -> None:
    first = make_timed([0.5])
    first.advance(11)
    first.test()
    first.advance(4)
    run = finish(make_timed([0.6, 0.9], first.checkpoint(), target=0.9))
    assert [test.step for test in run.history] == [11, 16, 17]
    assert run.seconds_to_target == 17.0


def test_the_report_has_the_time_to_the_target(make_timed, make_run, tmp_path: Path) -> None:
    ours = finish(make_timed([0.5, 0.9], target=0.9))
    theirs = finish(make_timed([0.5, 0.5, 0.5, 0.91], target=0.9, native=True))
    values = metrics(ours)
    assert values["seconds_to_target"] == values["train_seconds"] == 3.0
    assert values["epochs"] == 0
    assert values["images_per_second"] == 32.0
    assert values["settings"]["target"] == 0.9
    compared = comparison(ours, theirs)
    assert compared["torch"]["seconds_to_target"] == 6.0
    assert compared["speed_up"] == 2.0
    lines = table([ours, theirs]).splitlines()
    assert "seconds to 90%" in lines[0]
    assert lines[2].split()[-4:] == ["3.000", "32", "2.00", "x"]
    assert outcome(ours) == "fastnn: 90% test accuracy reached after 3.000 s of training"
    ours.evaluate = make_run().evaluate  # type: ignore[method-assign]
    write_report(tmp_path, [ours, theirs])
    assert json.loads((tmp_path / "metrics.json").read_text())["compare"]["speed_up"] == 2.0


def test_against_a_run_that_missed_the_target_there_is_no_speed_up(make_timed) -> None:
    ours = finish(make_timed([0.5, 0.9], target=0.9, epochs=1))
    theirs = finish(make_timed([0.5] * 8, target=0.9, epochs=1, native=True))
    assert speed_up(ours, theirs) is None
    assert comparison(ours, theirs)["speed_up"] is None
    assert "not reached" in table([ours, theirs])
