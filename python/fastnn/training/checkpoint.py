"""The state of a run in one safetensors file: everything that continuing exactly needs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastnn._diagnostics import counted
from fastnn.data.atomic import atomic_file
from fastnn.training.config import TrainConfig

_FORMAT = "fastnn.train/2"
_ADAM_STATE = {"step", "exp_avg", "exp_avg_sq"}
_MODEL, _OPTIMIZER, _ORDER, _LOSSES = "model.", "optimizer.", "order", "losses"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: unreadable, foreign, damaged, or of a run with other settings."""


@dataclass
class Checkpoint:
    """One moment of a run.

    Attributes:
        config: the settings.
        dataset: the name of the data set.
        step: steps taken.
        train_seconds: spent in them.
        history: one JSON object for each test.
        model: the model's state_dict.
        optimizer: the optimizer's state_dict.
        order: state of the generator that the present epoch's order was drawn from, uint8.
        losses: training loss of each step taken, float64 (step,).
    """

    config: TrainConfig
    dataset: str
    step: int
    train_seconds: float
    history: list[dict[str, Any]]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    order: Tensor
    losses: Tensor

    def save(self, path: Path) -> None:
        """Write the file atomically: `path` holds either this checkpoint or what it held before."""
        from safetensors.torch import save

        tensors = {_MODEL + name: value for name, value in self.model.items()}
        for index, state in self.optimizer["state"].items():
            tensors |= {f"{_OPTIMIZER}{index}.{name}": value for name, value in state.items()}
        tensors |= {_ORDER: self.order, _LOSSES: self.losses}
        values = {
            "format": _FORMAT,
            "config": asdict(self.config),
            "dataset": self.dataset,
            "step": self.step,
            "train_seconds": self.train_seconds,
            "history": self.history,
            "param_groups": self.optimizer["param_groups"],
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        # A number that JSON has no word for (a loss of nan) is written as Python reads it back: NaN.
        data = save(tensors, {name: json.dumps(value) for name, value in values.items()})
        with atomic_file(path) as file:
            file.write(data)

    @staticmethod
    def load(path: Path) -> Checkpoint:
        """Read a checkpoint, on the CPU.

        Raises:
            CheckpointError: `path` is not there, not safetensors, or not a checkpoint of `fastnn train`.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file") from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from None
        try:
            values = {name: json.loads(value) for name, value in metadata.items()}
            if values["format"] != _FORMAT:
                raise CheckpointError(f"{path}: expected format {_FORMAT}, got {values['format']}")
            return _assemble(values, tensors)
        except KeyError as error:
            raise CheckpointError(
                f"{path}: not a checkpoint of fastnn train: {error.args[0]!r} is missing"
            ) from None
        except CheckpointError:
            raise
        except (AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: not a checkpoint of fastnn train: {error}") from None

    def check_against(self, config: TrainConfig, dataset: str) -> None:
        """Refuse to continue a run under other settings or on other data.

        Raises:
            CheckpointError: naming each setting that differs.
        """
        differing = self.config.disagreements(config)
        if self.dataset != dataset:
            differing.append(f"dataset: {self.dataset}, not {dataset}")
        if differing:
            raise CheckpointError(f"the checkpoint is of a run with other settings ({'; '.join(differing)})")

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Load the state into a freshly built model and optimizer.

        Raises:
            CheckpointError: the tensors are not those of this model and optimizer.
        """
        _check_model(self.model, model.state_dict())
        parameters = list(model.parameters())
        states = self.optimizer["state"]
        if states.keys() != (set(range(len(parameters))) if self.step else set()):
            raise CheckpointError(
                f"optimizer: expected the state of {len(parameters) if self.step else 0} parameters after "
                f"{counted(self.step, 'step')}, got that of {len(states)}"
            )
        for index, state in states.items():
            if state.keys() != _ADAM_STATE:
                raise CheckpointError(
                    f"optimizer: parameter {index}: expected {', '.join(sorted(_ADAM_STATE))}, "
                    f"got {', '.join(sorted(state))}"
                )
            for name, value in state.items():
                expected = torch.Size() if name == "step" else parameters[index].shape
                if value.shape != expected:
                    raise CheckpointError(
                        f"optimizer: {name} of parameter {index}: expected {tuple(expected)}, "
                        f"got {tuple(value.shape)}"
                    )
        try:
            model.load_state_dict(self.model)
            optimizer.load_state_dict(self.optimizer)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"the state does not fit the model and its optimizer: {error}") from None


def _check_model(saved: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    if saved.keys() != expected.keys():
        raise CheckpointError(
            f"model: expected tensors {', '.join(expected)}, got {', '.join(saved) or 'none'}"
        )
    for name, tensor in expected.items():
        if saved[name].shape != tensor.shape or saved[name].dtype != tensor.dtype:
            raise CheckpointError(
                f"model: {name}: expected {tensor.dtype} {tuple(tensor.shape)}, "
                f"got {saved[name].dtype} {tuple(saved[name].shape)}"
            )


def _assemble(values: dict[str, Any], tensors: dict[str, Tensor]) -> Checkpoint:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(_OPTIMIZER):
            index, key = name.removeprefix(_OPTIMIZER).split(".", 1)
            state.setdefault(int(index), {})[key] = value
    groups = [
        {
            key: tuple(value) if isinstance(value, list) and key != "params" else value
            for key, value in group.items()
        }
        for group in values["param_groups"]
    ]
    step, losses = int(values["step"]), tensors[_LOSSES]
    if losses.shape != (step,):
        raise ValueError(f"expected the losses of {counted(step, 'step')}, got {tuple(losses.shape)}")
    return Checkpoint(
        config=TrainConfig(**values["config"]),
        dataset=values["dataset"],
        step=step,
        train_seconds=float(values["train_seconds"]),
        history=list(values["history"]),
        model={k.removeprefix(_MODEL): v for k, v in tensors.items() if k.startswith(_MODEL)},
        optimizer={"state": state, "param_groups": groups},
        order=tensors[_ORDER],
        losses=losses,
    )
