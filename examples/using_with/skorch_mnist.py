"""skorch: `TrainStep` as the training step of a `NeuralNetClassifier`, and the same in plain torch.

Checks, on the bundled digits, that both train the same weights, that every step was native, and that a net
goes on after `set_params`, `clone`, pickling and `load_params`, each time on its own module.
"""

from __future__ import annotations

import pickle
import tempfile
from typing import Any

import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier

import fastnn

EPOCHS, BATCHES = 5, 23


class MLP(torch.nn.Sequential):
    """A network whose width is a parameter of the search."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__(torch.nn.Linear(64, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10))


class FastClassifier(NeuralNetClassifier):
    """A classifier whose whole training step is one native call."""

    def initialize_optimizer(self, *args: Any, **kwargs: Any) -> FastClassifier:
        """Create the step where skorch creates the optimizer, also when `set_params` changes the module."""
        super().initialize_optimizer(*args, **kwargs)
        if not isinstance(self.criterion_, torch.nn.CrossEntropyLoss):
            raise TypeError("the criterion must be CrossEntropyLoss: get_loss is not called")
        self.step_ = fastnn.TrainStep(self.module_, self.criterion_, self.optimizer_)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Create a new step: the unpickled one has a copy of the module, which nothing else uses."""
        super().__setstate__(state)
        if self.initialized_:
            self.step_ = fastnn.TrainStep(self.module_, self.criterion_, self.optimizer_)

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Take the whole step, which does not return the output of the module."""
        self._set_training(True)
        return {"loss": self.step_(*batch), "y_pred": None}


def same(a: NeuralNetClassifier, b: NeuralNetClassifier) -> None:
    """Raise where two nets do not have the same weights up to rounding."""
    torch.testing.assert_close(b.module_.state_dict(), a.module_.state_dict(), rtol=1e-4, atol=1e-5)


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    options: dict[str, Any] = {
        "criterion": torch.nn.CrossEntropyLoss,
        "optimizer": torch.optim.Adam,
        "lr": 1e-3,
        "batch_size": 64,
        "verbose": 0,
    }

    def trained(kind: type[NeuralNetClassifier]) -> NeuralNetClassifier:
        torch.manual_seed(0)
        return kind(MLP, max_epochs=EPOCHS, **options).initialize().partial_fit(images, labels)

    plain = trained(NeuralNetClassifier)
    seen = fastnn.explain(trained, FastClassifier)
    fast = seen.result
    assert [d.reason for d in seen.decisions] == [None] * EPOCHS * BATCHES, seen
    same(plain, fast)
    assert (fast.predict(images) == plain.predict(images)).mean() > 0.99
    print(f"{EPOCHS * BATCHES} native steps, weights and predictions as without fastnn")

    copied = pickle.loads(pickle.dumps(fast))
    for net in (plain, fast, copied):
        net.partial_fit(images, labels)
    same(plain, fast)
    same(plain, copied)
    print("a pickled net continues with its own module")

    fast.set_params(module__hidden=32)
    assert fast.step_.model is fast.module_
    fast.partial_fit(images, labels)
    with tempfile.TemporaryDirectory() as folder:
        files = {"f_params": f"{folder}/module", "f_optimizer": f"{folder}/optimizer"}
        fast.save_params(**files)
        loaded = clone(fast).initialize()
        loaded.load_params(**files)
    for net in (fast, loaded):
        net.partial_fit(images, labels)
    same(fast, loaded)
    print("and after set_params, clone and load_params")


if __name__ == "__main__":
    main()
