"""scikit-learn's MLPClassifier, for the training step. Imported in a peer's process only."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn
import threadpoolctl
from sklearn.neural_network import MLPClassifier

Array = np.ndarray[Any, Any]
Run = Callable[[], list[Array]]


def setup(threads: int) -> str:
    """Check that its matrix library is limited to `threads`; name the version."""
    for library in threadpoolctl.threadpool_info():
        if library["num_threads"] > threads:
            raise RuntimeError(
                f"{library['internal_api']} has {library['num_threads']} threads, not {threads}"
            )
    return (
        f"scikit-learn {sklearn.__version__}, MLPClassifier.partial_fit on one batch, its own initial weights"
    )


def _training_step(values: list[Array], inputs: list[Array], targets: list[Array]) -> Run:
    """One `partial_fit` on one batch is one step of Adam with torch's defaults; it returns the loss."""
    classes = np.arange(values[-1].shape[0])
    model = MLPClassifier(
        [each.shape[0] for each in values[1:-1:2]],
        batch_size=len(targets[0]),
        alpha=0.0,
        learning_rate_init=1e-3,
        random_state=0,
    )
    batches = itertools.cycle(zip(inputs, targets, strict=True))
    warnings.simplefilter("ignore")

    def run() -> list[Array]:
        x, target = next(batches)
        model.partial_fit(x, target, classes=classes)
        return [np.asarray(model.loss_)]

    return run


OPERATIONS: dict[str, Callable[..., Run]] = {"training_step": _training_step}
