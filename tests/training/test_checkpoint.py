"""Checkpoint files: complete or absent, and refused if invalid."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastnn.data.atomic import atomic_file
from fastnn.training.checkpoint import Checkpoint, CheckpointError
from fastnn.training.run import Run


@pytest.fixture
def saved(make_run, tmp_path: Path) -> Path:
    run: Run = make_run()
    run.advance(5)
    path = tmp_path / "checkpoint.safetensors"
    run.checkpoint().save(path)
    return path


def metadata(path: Path) -> dict[str, str]:
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return dict(header["__metadata__"])


def rewrite(path: Path, tensors: dict[str, torch.Tensor | None], values: dict[str, object]) -> None:
    """Replace (or, with None, drop) tensors and metadata values of a checkpoint."""
    everything = {**load_file(path), **tensors}
    words = {**metadata(path), **{name: None if v is None else json.dumps(v) for name, v in values.items()}}
    save_file(
        {name: value for name, value in everything.items() if value is not None},
        path,
        {name: value for name, value in words.items() if value is not None},
    )


def test_it_is_a_plain_safetensors_file_with_the_models_own_names(saved: Path, make_run) -> None:
    tensors = load_file(saved)
    model = {
        name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")
    }
    make_run().parts.model.load_state_dict(model)
    assert tensors["optimizer.0.exp_avg"].shape == tensors["model.0.weight"].shape
    assert metadata(saved)["dataset"] == '"digits"'
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("content", [b"", b"no safetensors", bytes(100), b"\xff" * 100])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable safetensors file") as error:
        Checkpoint.load(tmp_path / "c")
    assert str(tmp_path / "c") in str(error.value)


@pytest.mark.parametrize("part", [0.001, 0.3, 0.999])
def test_a_truncated_file_is_refused(saved: Path, part: float) -> None:
    raw = saved.read_bytes()
    saved.write_bytes(raw[: int(len(raw) * part)])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        Checkpoint.load(saved)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        Checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        Checkpoint.load(tmp_path)


def test_someone_elses_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "c")
    with pytest.raises(CheckpointError, match="not a checkpoint of fastnn train: 'format' is missing"):
        Checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("tensors", "values", "message"),
    [
        ({}, {"format": "fastnn.train/99"}, "expected format fastnn.train/2, got fastnn.train/99"),
        ({}, {"config": None}, "'config' is missing"),
        ({}, {"config": {"epochs": -1}}, "epochs: expected at least 1"),
        ({}, {"config": {"colour": 1}}, "colour"),
        ({"losses": None}, {}, "'losses' is missing"),
        ({"losses": torch.zeros(4)}, {}, "expected the losses of 5 steps"),
        ({"optimizer.x.step": torch.zeros(())}, {}, "not a checkpoint of fastnn train"),
        ({}, {"param_groups": [1]}, "not a checkpoint of fastnn train"),
    ],
)
def test_a_damaged_description_is_refused(saved: Path, tensors: dict, values: dict, message: str) -> None:
    rewrite(saved, tensors, values)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.load(saved)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.0.bias": None}, "model: expected tensors 0.weight, 0.bias, .*, got 0.weight, 2"),
        ({"model.0.bias": torch.zeros(3)}, r"model: 0.bias: expected torch.float32 \(16,\), got .*\(3,\)"),
        ({"model.0.bias": torch.zeros(16).double()}, r"0.bias: expected torch.float32 .* got torch.float64"),
        ({"optimizer.1.exp_avg": torch.zeros(3)}, r"optimizer: exp_avg of parameter 1: expected \(16,\)"),
        ({"optimizer.1.exp_avg": None}, "optimizer: parameter 1: expected exp_avg, exp_avg_sq, step, got"),
        (
            {f"optimizer.3.{name}": None for name in ("step", "exp_avg", "exp_avg_sq")},
            "optimizer: expected the state of 4 parameters after 5 steps, got that of 3",
        ),
        ({"order": torch.zeros(5, dtype=torch.uint8)}, "the checkpoint is damaged"),
    ],
)
def test_tensors_of_another_model_are_refused(saved: Path, make_run, tensors: dict, message: str) -> None:
    rewrite(saved, tensors, {})
    with pytest.raises(CheckpointError, match=message):
        make_run(Checkpoint.load(saved))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 3}, "seed: 0, not 3"),
        ({"hidden": (17,)}, r"hidden: \(16,\), not \(17,\)"),
        ({"epochs": 4}, "epochs: 3, not 4"),
        ({"native": True, "batch_size": 7}, "batch_size: 32, not 7; native: False, not True"),
    ],
)
def test_other_settings_are_refused(saved: Path, make_run, settings: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        make_run(Checkpoint.load(saved), **settings)


def test_other_data_is_refused(saved: Path, make_run) -> None:
    checkpoint = Checkpoint.load(saved)
    checkpoint.dataset = "mnist"
    with pytest.raises(CheckpointError, match="dataset: mnist, not digits"):
        make_run(checkpoint)


def test_more_steps_than_the_run_has_are_refused(make_run) -> None:
    run = make_run(schedule="constant", epochs=2)
    run.advance(100)
    run.test()
    run.advance(100)
    with pytest.raises(CheckpointError, match="step: expected at most 11, got 22"):
        make_run(run.checkpoint(), schedule="constant", epochs=1)


def test_a_failed_write_leaves_the_old_file(saved: Path, make_run, monkeypatch) -> None:
    before = saved.read_bytes()

    def full(handle: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make_run().checkpoint().save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_an_interrupt_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def write() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["f"]


def test_an_atomic_file_has_the_usual_permissions(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "f") as file:
        file.write(b"x")
    (tmp_path / "g").write_bytes(b"x")
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "g").stat().st_mode


def test_a_reader_of_the_old_file_is_not_disturbed(saved: Path, make_run) -> None:
    """The new file takes the old one's name, not its disk blocks: there is never half of each."""
    before = saved.read_bytes()
    with open(saved, "rb") as reader:
        make_run().checkpoint().save(saved)
        assert reader.read() == before
    assert Checkpoint.load(saved).step == 0
