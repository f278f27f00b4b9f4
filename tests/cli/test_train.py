"""``fastnn train`` from end to end, on the bundled digits, and on MNIST if it is found."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastnn.cli.main import main
from fastnn.training.checkpoint import Checkpoint

MNIST = os.environ.get("FASTNN_DATA_DIR", "")
QUICK = ["train", "--no-progress", "--layers", "16", "--train-samples", "640"]
FILES = ["checkpoint.safetensors", "curves.png", "digits.png", "metrics.json"]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def result(directory: Path) -> dict:
    return json.loads((directory / "metrics.json").read_text())


def run(*arguments: str, code: int = 0) -> None:
    assert main([*QUICK, *arguments]) == code


@pytest.fixture
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_end_to_end_on_the_digits(tmp_path: Path, capsys) -> None:
    run("--out", "out", "--batch-size", "32")
    out, err = capsys.readouterr()
    assert names(tmp_path / "out") == FILES
    values = result(tmp_path / "out")
    assert values["dataset"] == "digits"
    assert values["epochs"] == 5
    assert values["layers"] == [64, 16, 10]
    assert values["test_accuracy"] > 0.75
    assert "MNIST IS NOT AVAILABLE" in err
    assert "digits (scikit-learn, 8x8; not MNIST)" in out
    assert f"{values['test_accuracy']:.2%}" in out
    assert values["backend"] in out
    assert [line.split()[0] for line in out.splitlines() if "/5 " in line] == [f"{i}/5" for i in range(1, 6)]


def test_the_default_place_of_the_results(tmp_path: Path) -> None:
    run("--epochs", "1")
    assert names(tmp_path / "runs" / "train") == FILES


def test_native_uses_torch_alone(tmp_path: Path) -> None:
    run("--native", "--epochs", "1", "--out", "out")
    assert result(tmp_path / "out")["backend"] == "torch"


def test_compare_runs_both(tmp_path: Path, capsys) -> None:
    run("--compare", "--epochs", "2", "--out", "out", "--dtype", "float64")
    assert names(tmp_path / "out") == sorted([*FILES, "torch"])
    assert names(tmp_path / "out" / "torch") == FILES
    ours, theirs = result(tmp_path / "out"), result(tmp_path / "out" / "torch")
    assert theirs["backend"] == "torch"
    assert ours["test_accuracy"] == pytest.approx(theirs["test_accuracy"], abs=0.01)
    assert ours["compare"]["torch"]["train_seconds"] == theirs["train_seconds"]
    assert ours["compare"]["speed_up"] == pytest.approx(theirs["train_seconds"] / ours["train_seconds"])
    assert "speed-up" in capsys.readouterr().out


@pytest.mark.parametrize("options", [[], ["--native"]])
def test_a_target_ends_the_run_and_reports_the_time(tmp_path: Path, capsys, options: list[str]) -> None:
    run("--target", "0.3", "--batch-size", "32", "--out", "out", *options)
    values = result(tmp_path / "out")
    assert 0 < values["steps"] < 100
    assert values["test_accuracy"] >= 0.3 > values["history"][-2]["test_accuracy"]
    assert names(tmp_path / "out") == FILES
    out = capsys.readouterr().out
    assert f"30% test accuracy reached after {values['seconds_to_target']:.3f} s of training" in out
    assert "to 30% test accuracy in at most 5 epochs" in out


def test_a_target_that_is_not_reached_ends_with_1(tmp_path: Path, capsys) -> None:
    run("--target", "1", "--epochs", "1", "--out", "out", code=1)
    assert "fastnn: 100% test accuracy was not reached" in capsys.readouterr().err
    assert result(tmp_path / "out")["seconds_to_target"] is None
    assert names(tmp_path / "out") == FILES


def test_compare_to_a_target(tmp_path: Path, capsys) -> None:
    run("--compare", "--target", "0.3", "--batch-size", "32", "--out", "out")
    ours, theirs = result(tmp_path / "out"), result(tmp_path / "out" / "torch")
    ratio = theirs["seconds_to_target"] / ours["seconds_to_target"]
    assert ours["compare"]["speed_up"] == pytest.approx(ratio)
    out = capsys.readouterr().out
    assert "seconds to 30%" in out
    assert "fastnn: 30% test accuracy reached" in out
    assert "torch: 30% test accuracy reached" in out


def test_resume_keeps_the_target_and_takes_another(tmp_path: Path) -> None:
    run("--target", "0.3", "--batch-size", "32", "--out", "out")
    steps = result(tmp_path / "out")["steps"]
    again = ["train", "--no-progress", "--resume", "out/checkpoint.safetensors"]
    assert main(again) == 0
    assert result(tmp_path / "out")["steps"] == steps
    assert main([*again, "--target", "0.6"]) == 0
    assert result(tmp_path / "out")["steps"] > steps
    assert result(tmp_path / "out")["test_accuracy"] >= 0.6


@pytest.mark.usefixtures("_threads")
def test_options_reach_the_run(tmp_path: Path) -> None:
    options = "--layers 12-11 --epochs 1 --batch-size 50 --lr 0.01 --schedule cosine --seed 7 --device cpu "
    options += "--dtype bfloat16 --threads 1 --train-samples 100 --out out"
    run(*options.split())
    values = result(tmp_path / "out")
    assert values["settings"] == {
        "hidden": [12, 11],
        "epochs": 1,
        "batch_size": 50,
        "lr": 0.01,
        "schedule": "cosine",
        "seed": 7,
        "dtype": "bfloat16",
        "native": False,
        "train_samples": 100,
        "target": None,
    }
    assert (values["threads"], values["device"], values["train_images"], values["steps"]) == (
        1,
        "cpu",
        100,
        2,
    )


@pytest.mark.parametrize(
    ("layers", "widths"),
    [
        ("784-20-10", [64, 20, 10]),
        pytest.param("784-10", [64, 10], marks=pytest.mark.long),
        pytest.param("784-20-10-10", [64, 20, 10, 10], marks=pytest.mark.long),
        pytest.param("10", [64, 10, 10], marks=pytest.mark.long),
        ("784-20", [64, 784, 20, 10]),
    ],
)
def test_layers_may_be_the_whole_chain(tmp_path: Path, layers: str, widths: list[int]) -> None:
    run("--layers", layers, "--epochs", "1", "--out", "out")
    assert result(tmp_path / "out")["layers"] == widths


def test_resume_takes_settings_and_place_from_the_checkpoint(tmp_path: Path) -> None:
    options = ["--seed", "3", "--epochs", "2", "--batch-size", "64"]
    run(*options, "--out", "whole")
    path = tmp_path / "part" / "checkpoint.safetensors"
    run(*options, "--out", "part")
    _rewind(path, tmp_path / "whole" / "checkpoint.safetensors")
    assert main(["train", "--no-progress", "--resume", str(path)]) == 0
    whole, resumed = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "part"))
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    assert result(tmp_path / "part")["epochs"] == 2


def _rewind(path: Path, whole: Path) -> None:
    """Replace the checkpoint at `path` by one of the same run, seven steps from its start."""
    from fastnn.data.digits import load_digits
    from fastnn.training.run import Run

    again = Run(Checkpoint.load(whole).config, load_digits(), torch.device("cpu"))
    again.advance(7)
    again.checkpoint().save(path)


def test_resume_refuses_other_settings(tmp_path: Path, capsys) -> None:
    run("--epochs", "1", "--out", "out")
    run("--resume", "out/checkpoint.safetensors", "--seed", "5", code=1)
    assert "error: the checkpoint is of a run with other settings (seed: 0, not 5)" in capsys.readouterr().err


def test_tensorboard_events(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        run("--epochs", "2", "--tensorboard", "--out", "out")
    assert len(names(tmp_path / "out" / "tensorboard")) == 1
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    accuracy = [event.value for event in events.Scalars("test/accuracy")]
    assert accuracy == pytest.approx(
        [epoch["test_accuracy"] for epoch in result(tmp_path / "out")["history"]]
    )
    assert len(events.Scalars("train/loss")) == result(tmp_path / "out")["steps"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--layers 12-0", "expected widths of at least 1"),
        (
            "--layers 100-128-10",
            "hidden widths alone, such as 100-128, or those of all layers, such as 784-",
        ),
        ("--target 98", "expected a number above 0, at most 1, such as 0.98, got '98'"),
        ("--target 0", "expected a number above 0, at most 1, such as 0.98, got '0'"),
        ("--target nan", "expected a number above 0"),
        ("--target high", "expected a number above 0"),
        ("--layers wide", "expected widths such as 128"),
        ("--epochs 0", "expected a whole number of at least 1, got '0'"),
        ("--batch-size 1.5", "expected a whole number"),
        ("--lr nan", "expected a positive number, got 'nan'"),
        ("--lr -1", "expected a positive number|expected one argument"),
        ("--seed -1", "expected a whole number from 0|expected one argument"),
        ("--schedule linear", "invalid choice: 'linear'"),
        ("--dtype float16", "invalid choice: 'float16'"),
        ("--native --compare", "not allowed with argument"),
        ("--compare --resume x", "not allowed with argument"),
    ],
)
def test_bad_options_end_with_2(options: str, message: str, capsys) -> None:
    import re

    with pytest.raises(SystemExit) as exit:
        main(["train", *options.split()])
    assert exit.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data-dir nowhere", "nowhere: expected the MNIST files"),
        ("--resume nowhere", "nowhere: no such file"),
        ("--resume foreign", "foreign: not a readable safetensors file"),
        ("--out foreign", "cannot write the results"),
    ],
)
def test_what_cannot_be_used_ends_with_1(tmp_path: Path, options: str, message: str, capsys) -> None:
    (tmp_path / "foreign").write_text("something else")
    run(*options.split(), code=1)
    said = capsys.readouterr().err
    assert message in said
    if "--resume" in options:
        assert "MNIST" not in said, "no data is looked for, let alone downloaded, for a run that cannot start"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(capsys) -> None:
    run("--device", "cuda", code=1)
    assert "--device cuda: this torch sees no CUDA device" in capsys.readouterr().err


def test_missing_extras_are_reported_before_any_work(monkeypatch, capsys) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tqdm" else find(name))
    run(code=1)
    assert capsys.readouterr().err == 'fastnn train: error: tqdm not installed: pip install "fastnn[train]"\n'


def test_ctrl_c_leaves_a_checkpoint_that_resumes(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "fastnn.cli.main"]
    options = [*QUICK, "--schedule", "constant", "--out", "out"]
    process = subprocess.Popen(
        [*command, *options, "--epochs", "1000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            while "2/1000000" not in (line := process.stdout.readline()):
                assert line, "the run ended by itself"
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "continue with: fastnn train --resume out/checkpoint.safetensors" in err
    assert "Traceback" not in err
    assert names(tmp_path / "out") == ["checkpoint.safetensors"]
    saved = Checkpoint.load(tmp_path / "out" / "checkpoint.safetensors")
    assert saved.step >= 10
    epochs = saved.step // 5 + 1
    run("--resume", "out/checkpoint.safetensors", "--epochs", str(epochs))
    assert result(tmp_path / "out")["steps"] == 5 * epochs
    assert names(tmp_path / "out") == FILES


@pytest.mark.skipif(not MNIST, reason="FASTNN_DATA_DIR is not set")
def test_the_defaults_reach_the_promised_accuracy_on_mnist(tmp_path: Path, capsys) -> None:
    assert main(["train", "--no-progress", "--data-dir", MNIST, "--out", "out"]) == 0
    values = result(tmp_path / "out")
    assert values["dataset"] == "mnist"
    assert values["layers"] == [784, 128, 10]
    assert values["epochs"] == 5
    assert values["test_accuracy"] >= 0.975
    assert "digits" not in capsys.readouterr().out.replace("digits.png", "")
