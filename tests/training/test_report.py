"""The output of a run."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from fastnn.training.console import Console
from fastnn.training.evaluate import Evaluation
from fastnn.training.loop import train
from fastnn.training.plots import _smooth, plot_digits
from fastnn.training.report import metrics, table, write_report
from fastnn.training.run import Run


def done(run: Run, tmp_path: Path) -> Run:
    with Console([run], progress=False) as console:
        train([run], [tmp_path / "c"], console)
    return run


def test_the_report_of_one_run(make_run, tmp_path: Path) -> None:
    run = done(make_run(), tmp_path)
    write_report(tmp_path, [run])
    values = json.loads((tmp_path / "metrics.json").read_text())
    assert values["dataset"] == "digits"
    assert values["backend"] == run.backend
    assert values["epochs"] == 3
    assert values["steps"] == 33
    assert values["test_accuracy"] == run.history[-1].test_accuracy == run.evaluate().accuracy
    assert values["train_seconds"] == run.train_seconds > 0
    assert values["images_per_second"] == pytest.approx(3 * 330 / run.train_seconds)
    assert values["layers"] == [64, 16, 10]
    assert values["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    assert [epoch["epoch"] for epoch in values["history"]] == [1, 2, 3]
    assert "compare" not in values
    assert {"fastnn", "torch", "python"} <= values["versions"].keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "c",
        "curves.png",
        "digits.png",
        "metrics.json",
    ]


def test_the_pictures_are_pictures(make_run, tmp_path: Path) -> None:
    write_report(tmp_path, [done(make_run(), tmp_path)])
    for name in ("curves.png", "digits.png"):
        pixels = imread(tmp_path / name)
        assert min(pixels.shape[:2]) > 500
        assert pixels[..., :3].std() > 0.05


def test_a_loss_of_nan_hides_only_the_means_that_include_it() -> None:
    smooth = _smooth(np.array([1.0, 3.0, 5.0, np.nan, 7.0, 9.0, 11.0]), 24)
    assert smooth.tolist() == pytest.approx([1, 2, 4, np.nan, np.nan, 8, 10], nan_ok=True)


def test_the_worst_mistakes_are_wrong_and_in_order(make_run, monkeypatch) -> None:
    """With five mistakes of known losses, the grid shows exactly these, the highest loss first."""
    run = make_run()
    labels = run.data.test_labels
    predicted = labels.copy()
    losses = np.full(len(labels), 9.0)
    for place, index in enumerate([40, 7, 300, 12, 99]):
        predicted[index] = (labels[index] + 1) % 10
        losses[index] = 5.0 - place
    shown: list[list[int]] = []
    monkeypatch.setattr(
        "fastnn.training.plots._grid",
        lambda figure, run, chosen, predicted, title: shown.append(list(chosen)),
    )
    evaluation = Evaluation(torch.from_numpy(predicted), torch.from_numpy(losses), 0.9)
    plot_digits(io.BytesIO(), run, evaluation)
    assert shown[0][:3] == [0, 1, 2]
    assert shown[1] == [40, 7, 300, 12, 99]


def test_no_mistakes_make_no_trouble(make_run) -> None:
    run = make_run()
    perfect = run.evaluate()
    perfect.predicted.copy_(torch.from_numpy(run.data.test_labels))
    plot_digits(io.BytesIO(), run, perfect)


def test_the_report_of_two_runs(make_run, tmp_path: Path) -> None:
    runs = [make_run(), make_run(native=True)]
    with Console(runs, progress=False) as console:
        train(runs, [tmp_path / "a", tmp_path / "b"], console)
    runs[0].train_seconds, runs[1].train_seconds = 2.0, 5.0
    write_report(tmp_path, runs)
    values = json.loads((tmp_path / "metrics.json").read_text())
    assert values["train_seconds"] == 2.0
    assert values["compare"]["speed_up"] == 2.5
    assert values["compare"]["torch"]["backend"] == "torch"
    lines = table(runs).splitlines()
    headers = "backend test accuracy test loss train seconds images/s speed-up"
    assert lines[0].split() == headers.split()
    assert lines[2].startswith(runs[0].backend)
    assert lines[2].endswith("2.50 x")
    assert lines[3].startswith("torch")
    assert lines[3].endswith("1.00 x")


def test_a_table_of_one_run_has_no_speed_up(make_run, tmp_path: Path) -> None:
    text = table([done(make_run(epochs=1), tmp_path)])
    assert "speed-up" not in text
    assert "test accuracy" in text


def test_a_loss_of_nan_is_null_in_json(make_run, tmp_path: Path) -> None:
    run = done(make_run(epochs=1), tmp_path)
    run.history[-1] = replace(run.history[-1], test_loss=float("nan"))
    values = metrics(run)
    assert values["test_loss"] is None
    assert values["history"][-1]["test_loss"] is None
    json.dumps(values, allow_nan=False)


def test_the_console_says_what_each_epoch_brought(make_run, tmp_path: Path, capsys) -> None:
    run = done(make_run(), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].split()[0] == "epoch"
    for epoch, line in zip(run.history, lines[1:], strict=True):
        assert line.split()[0] == f"{epoch.epoch:g}/3"
        assert f"{epoch.test_accuracy:.2%}" in line
        assert f"{epoch.train_loss:.4f}" in line
