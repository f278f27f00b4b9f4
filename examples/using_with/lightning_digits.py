"""Lightning: a whole step of `TrainStep` under `Trainer.fit`, and the same in plain torch.

Checks that both train the same weights, that `global_step` and the schedule advance, that every step was
native, and that a run continues from its checkpoint.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from pathlib import Path

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import fastnn

EPOCHS, BATCHES = 4, 24


class Plain(lightning.LightningModule):
    """A classifier as it is commonly written."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        self.loss_fn = torch.nn.CrossEntropyLoss()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss; Lightning does the rest."""
        x, y = batch
        return self.loss_fn(self.net(x), y)

    def configure_optimizers(self) -> dict[str, object]:
        """Make Adam, and a schedule that moves at every step."""
        optimizer = torch.optim.Adam(self.parameters())
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=EPOCHS * BATCHES)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Native(Plain):
    """The same with the whole step in one native call."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def on_fit_start(self) -> None:
        """Take torch's optimizer out of Lightning's wrapper, with which the step would run eagerly."""
        self.step = fastnn.TrainStep(self.net, self.loss_fn, self.optimizers().optimizer)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Take the whole step, then tell Lightning."""
        loss = self.step(*batch)
        self.optimizers().step()  # finds no gradients and changes nothing, but counts global_step
        self.lr_schedulers().step()
        return loss


def fit(module: Plain, epochs: int, checkpoint: Path | None = None) -> lightning.Trainer:
    """Train up to an epoch on the digits, in the same order each time."""
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
    trainer = lightning.Trainer(
        max_epochs=epochs,
        limit_train_batches=BATCHES,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=64), ckpt_path=checkpoint)
    assert trainer.global_step == epochs * BATCHES, trainer.global_step
    return trainer


def same(a: Plain, b: Plain) -> None:
    """Raise where two modules do not have the same weights up to rounding."""
    torch.testing.assert_close(b.state_dict(), a.state_dict(), rtol=1e-4, atol=1e-5)


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(0, verbose=False)
    plain, native = Plain(), Native()
    native.load_state_dict(plain.state_dict())
    start = copy.deepcopy(plain.state_dict())

    theirs = fit(plain, EPOCHS)
    seen = fastnn.explain(fit, native, EPOCHS)
    assert [d.reason for d in seen.decisions if d.op == "train_step"] == [None] * EPOCHS * BATCHES, seen
    same(plain, native)
    assert not torch.equal(start["net.0.weight"], native.net[0].weight)
    rates = [trainer.optimizers[0].param_groups[0]["lr"] for trainer in (theirs, seen.result)]
    assert rates[0] == rates[1], rates
    print(f"{EPOCHS * BATCHES} native steps, global_step, schedule and weights as without fastnn")

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "half.ckpt"
        half, rest = Native(), Native()
        half.load_state_dict(start)
        fit(half, EPOCHS // 2).save_checkpoint(checkpoint)
        fit(rest, EPOCHS, checkpoint)
        same(plain, rest)
        same(half, Plain.load_from_checkpoint(checkpoint))
    print("a run continues from its checkpoint, which plain torch loads")


if __name__ == "__main__":
    main()
