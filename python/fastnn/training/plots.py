"""The pictures of a run, drawn without a display and without pyplot's global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from fastnn.training.evaluate import Evaluation
from fastnn.training.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {"fastnn": "#0b6e99", "torch": "#d9730d"}
_GRAY, _GOOD, _BAD = "#6b6b6b", "#2e7d32", "#c62828"
_DPI = 144


def plot_curves(file: BinaryIO, runs: Sequence[Run]) -> None:
    """Training loss, and the tests' accuracy by epoch (of several runs: by seconds of training), as a PNG."""
    figure = _figure(11, 4.4)
    loss, accuracy = figure.subplots(1, 2)
    for run in reversed(runs):  # the first is on top: from the same weights the losses nearly coincide
        color, label = _COLORS[run.name], run.backend
        values = np.asarray(run.losses)
        epochs = (np.arange(len(values)) + 1) / run.steps_per_epoch
        loss.plot(epochs, values, color=color, alpha=0.22, linewidth=0.7)
        width = 1.8 if run is runs[0] else 4.5
        loss.plot(epochs, _smooth(values, run.steps_per_epoch), color=color, linewidth=width, label=label)
        spent = np.cumsum([test.train_seconds for test in run.history])
        ends = spent if len(runs) > 1 else [test.epoch for test in run.history]
        reached = [100 * test.test_accuracy for test in run.history]
        label = f"{label}: {reached[-1]:.2f}%"
        accuracy.plot(ends, reached, color=color, marker="o", markersize=5, linewidth=1.8, label=label)
    if runs[0].config.target is not None:
        accuracy.axhline(
            100 * runs[0].config.target, color=_GRAY, linewidth=1, linestyle="--", label="target"
        )
    loss.set_yscale("log")
    _dress(loss, "Training loss (thin: each step; thick: smoothed)", "epoch", "cross-entropy")
    _dress(accuracy, "Test accuracy", "seconds of training" if len(runs) > 1 else "epoch", "%")
    if len(runs) > 1:
        accuracy.set_xlim(0, 1.06 * max(run.train_seconds for run in runs))
    else:
        accuracy.xaxis.get_major_locator().set_params(integer=True)
    accuracy.margins(x=0.08, y=0.15)
    for axis, place in ((loss, "upper right"), (accuracy, "lower right")):
        axis.legend(loc=place, frameon=False, reverse=True)
    figure.suptitle(
        f"{runs[0].data.title}, {_chain(runs[0])}, batch {runs[0].config.batch_size}", fontsize=13
    )
    figure.savefig(file, format="png", dpi=_DPI)


def plot_digits(file: BinaryIO, run: Run, evaluation: Evaluation) -> None:
    """The first test images with the predictions, next to the mistakes with the highest loss, as a PNG."""
    labels = run.data.test_labels
    predicted = evaluation.predicted.numpy()
    losses = evaluation.losses.numpy()
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-losses[wrong], kind="stable")]
    figure = _figure(12, 6.1, layout=None)
    figure.suptitle(
        f"{run.data.title}: {evaluation.accuracy:.2%} of {len(labels):,} test images right, "
        f"{len(wrong):,} wrong",
        fontsize=13,
    )
    left, right = figure.add_axes((0.02, 0.02, 0.46, 0.85)), figure.add_axes((0.52, 0.02, 0.46, 0.85))
    _grid(left, run, np.arange(len(labels)), predicted, "The first test images, and the predictions")
    _grid(right, run, worst, predicted, "The worst mistakes (highest loss): prediction, not label")
    figure.savefig(file, format="png", dpi=_DPI)


def _grid(
    axis: Axes, run: Run, chosen: npt.NDArray[np.intp], predicted: npt.NDArray[np.int64], title: str
) -> None:
    """Five rows of six images as one mosaic: thirty axes would take seconds to lay out."""
    rows, columns = 5, 6
    height, width = run.data.height, run.data.width
    above, beside = round(0.42 * height), round(0.3 * width)
    mosaic = np.zeros((rows * (above + height), columns * (width + beside)), np.uint8)
    for place, index in enumerate(chosen[: rows * columns]):
        top, left = above + place // columns * (above + height), place % columns * (width + beside)
        mosaic[top : top + height, left : left + width] = run.data.test_images[index].reshape(height, width)
        label, guess = run.data.test_labels[index], predicted[index]
        axis.text(
            left + width / 2 - 0.5,
            top - 0.07 * height,
            f"{guess}" if label == guess else f"{guess}, not {label}",
            ha="center",
            va="bottom",
            fontsize=10,
            color=_GOOD if label == guess else _BAD,
        )
    mosaic = mosaic[:, :-beside]
    axis.imshow(mosaic, cmap="gray_r", vmin=0, vmax=run.data.white, interpolation="nearest")
    axis.set_axis_off()
    axis.set_title(title, fontsize=11, color=_GRAY)


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def _dress(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=11, color=_GRAY)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(color="#e3e3e3", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _smooth(values: npt.NDArray[np.float64], steps_per_epoch: int) -> npt.NDArray[np.float64]:
    """Mean over the last twelfth of an epoch, or over what there is of it at the start."""
    width = max(1, steps_per_epoch // 12)
    sums: npt.NDArray[np.float64] = np.convolve(values, np.ones(width))[: len(values)]
    return sums / np.minimum(np.arange(1, len(values) + 1), width)


def _chain(run: Run) -> str:
    return "-".join(map(str, run.layers))
