"""The settings of a run."""

from __future__ import annotations

from dataclasses import dataclass, fields

SCHEDULES = ("constant", "cosine", "onecycle")
DTYPES = ("float32", "float64", "bfloat16")

# One-cycle starts and ends low, so that its peak may be high; the other two start at their highest rate.
DEFAULT_LR = {"onecycle": 5e-3, "cosine": 2e-3, "constant": 1e-3}


@dataclass(frozen=True)
class TrainConfig:
    """What decides the numbers of a run and where it ends, besides the data set.

    Attributes:
        hidden: widths of the hidden layers; the first and the last layer follow the data set.
        epochs: passes over the training images; the schedule's length even if `target` ends the run early.
        batch_size: samples in a step.
        lr: the highest learning rate of Adam; 0 takes the schedule's default.
        schedule: how the rate changes over the run, see `schedule.lr_at`.
        seed: of the initial weights and of the order of the samples.
        dtype: of the parameters and of the arithmetic.
        native: train with torch's own modules and optimizer, without fastnn.
        train_samples: use only so many training images (None: all).
        target: stop at the first test with at least this accuracy, from 0 to 1 (None: train all epochs).
    """

    hidden: tuple[int, ...] = (128,)
    epochs: int = 5
    batch_size: int = 128
    lr: float = 0.0
    schedule: str = "onecycle"
    seed: int = 0
    dtype: str = "float32"
    native: bool = False
    train_samples: int | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        """Fill in the schedule's learning rate, and refuse what cannot be trained with."""
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.lr == 0:
            object.__setattr__(self, "lr", DEFAULT_LR[self.schedule])
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr: expected a positive number, got {self.lr}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden: expected widths of at least 1, got {self.hidden}")
        if self.train_samples is not None and self.train_samples < 1:
            raise ValueError(f"train_samples: expected at least 1, got {self.train_samples}")
        if self.target is not None and not 0 < self.target <= 1:
            raise ValueError(f"target: expected an accuracy above 0 and at most 1, got {self.target}")

    def disagreements(self, other: TrainConfig) -> list[str]:
        """Settings in which `other` differs, each as ``name: mine, not theirs``.

        The target may change, for no step depends on it. A constant rate leaves the number of epochs open: a
        run under it may go on for longer.
        """
        ignored = {"target"} | ({"epochs"} if self.schedule == other.schedule == "constant" else set())
        return [
            f"{field.name}: {getattr(self, field.name)}, not {getattr(other, field.name)}"
            for field in fields(self)
            if field.name not in ignored and getattr(self, field.name) != getattr(other, field.name)
        ]
