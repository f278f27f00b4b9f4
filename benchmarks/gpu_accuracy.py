"""Training seconds to a test accuracy on MNIST on a CUDA device: network, batch and rates of `accuracy`.

The images stay on the device: as bytes for `TrainStep.epoch`, normalised once as floats for torch, which is
faster for it than doing it for each batch. All start from the same weights, see the same images in the same
order and have the same learning rate in each step. Clocked is what the steps of a quarter of an epoch need,
the device idle before and after them. Not clocked are the permutation, the normalisation, the capture of
torch's graph, and the evaluation after each quarter.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastnn
import fastnn.nn
import fastnn.optim
from fastnn.data import DataError, Dataset, load
from fastnn.training.model import torch_mlp

from .accuracy import BATCH, EPOCHS, HIDDEN, RATE, TARGET, Curve, Steps, accuracy, eager, rates_of, summed_up
from .case import OURS
from .cases.recipe import eager_step

SEEDS = 20
_PARTS = 4  # of an epoch, each followed by an evaluation


class _Data:
    """The set on a device."""

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.widths = [data.inputs, HIDDEN, data.classes]
        self.mean, self.std = data.mean, data.std
        self.device = device
        self.images = torch.from_numpy(data.train_images).to(device)
        self.labels = torch.from_numpy(data.train_labels).to(device)
        self.normalised = self.images.float().sub_(data.mean).div_(data.std)
        self.test = torch.from_numpy(data.test_images).to(device).float().sub_(data.mean).div_(data.std)
        self.answers = torch.from_numpy(data.test_labels).to(device)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ours(data: _Data, model: nn.Module) -> Steps:
    optimizer = fastnn.optim.Adam(model.parameters(), lr=RATE)
    loss_of = fastnn.nn.CrossEntropyLoss()
    step = fastnn.TrainStep(model, loss_of, optimizer, mean=data.mean / 255, std=data.std / 255)
    return lambda rows, rates: step.epoch(data.images, data.labels, BATCH, rows, lr=rates)


def _eager(data: _Data, model: nn.Module) -> Steps:
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    return partial(eager, model, nn.CrossEntropyLoss(), optimizer, data.normalised, data.labels)


def capture(step: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The replay of a step, captured as torch's documentation advises; on a CPU, the step."""
    if device.type != "cuda":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _captured(data: _Data, model: nn.Module) -> Steps:
    """A graph for whole batches and one for the last, smaller one."""
    rate_now = torch.tensor(0.0, device=data.device)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=rate_now, fused=True, capturable=data.device.type == "cuda"
    )
    step = eager_step(model, nn.CrossEntropyLoss(), optimizer)

    def take_rows(rows: Tensor) -> None:
        step(data.normalised.index_select(0, rows), data.labels.index_select(0, rows))

    start = [p.detach().clone() for p in model.parameters()]
    count = len(data.images)
    replays: dict[int, tuple[Tensor, Callable[[], object]]] = {}
    for size in {min(BATCH, count), count % BATCH} - {0}:
        rows = torch.arange(size, device=data.device)
        replays[size] = rows, capture(partial(take_rows, rows), data.device)
    with torch.no_grad():  # undo the steps of the capture
        for parameter, value in zip(model.parameters(), start, strict=True):
            parameter.copy_(value)
        for state in optimizer.state.values():
            for entry in state.values():
                entry.zero_()

    def take(rows: Tensor, rates: list[float]) -> None:
        on_device = torch.tensor(rates, device=data.device)
        for batch, rate in zip(rows.split(BATCH), on_device, strict=True):
            static, replay = replays[len(batch)]
            static.copy_(batch)
            rate_now.copy_(rate)
            replay()

    return take


_SIDES: dict[str, Callable[[_Data, nn.Module], Steps]] = {
    OURS: _ours,
    "torch fused": _eager,
    "torch fused graph": _captured,
}


def _network(side: str, data: _Data) -> nn.Module:
    model = fastnn.nn.MLP(data.widths) if side == OURS else torch_mlp(data.widths)
    return model.to(data.device)


def _why_not_one_launch(data: _Data) -> list[str]:
    take = _ours(data, _network(OURS, data))
    rows = torch.arange(BATCH, device=data.device)
    return [d.reason for d in fastnn.explain(take, rows, [RATE]).decisions if d.reason is not None]


def _able(data: _Data) -> list[str]:
    """The sides that can run: a failing one must not cost the others' figures. Also pays one-time costs."""
    able = []
    for name in _SIDES:
        try:
            _race(data, [name], 0, 2)
        except Exception as error:
            print(f"MNIST, {name}: {error}")
        else:
            able.append(name)
    return able


def _race(data: _Data, sides: Sequence[str], seed: int, epochs: int = EPOCHS) -> dict[str, Curve]:
    """One run of each side."""
    torch.manual_seed(seed)
    initial = torch_mlp(data.widths).state_dict()
    generator = torch.Generator().manual_seed(seed)
    count = len(data.images)
    orders = [torch.randperm(count, generator=generator).to(data.device) for _ in range(epochs)]
    steps = -(-count // BATCH)
    rates = rates_of(epochs * steps)
    # Parts of whole batches, as (number of the first step, rows).
    length = -(-steps // _PARTS)
    parts = [
        (epoch * steps + i * length, rows)
        for epoch, order in enumerate(orders)
        for i, rows in enumerate(order.split(length * BATCH))
    ]
    runs: dict[str, Curve] = {}
    for name in sides:
        model = _network(name, data)
        model.load_state_dict(initial)
        take = _SIDES[name](data, model)
        run = runs[name] = Curve()
        spent = 0.0
        for first, rows in parts:
            of_part = rates[first : first + -(-len(rows) // BATCH)]
            _synchronize(data.device)
            began = time.perf_counter()
            take(rows, of_part)
            _synchronize(data.device)
            spent += time.perf_counter() - began
            run.seconds.append(spent)
            run.accuracy.append(accuracy(model, data.test, data.answers))
    return runs


def measure(
    device: torch.device, seeds: int = SEEDS, *, seconds: float, quick: bool = False
) -> dict[str, Any] | str:
    """Race over `seeds` seeds, or those that start within `seconds`: data for JSON, or why there is none.

    A quick one takes a tenth of the training images.
    """
    end = time.monotonic() + seconds
    try:
        found = load(None, lambda _: None)
    except (DataError, OSError) as error:
        return f"no MNIST: {error}"
    if found.name != "mnist":
        return "no MNIST: give its directory as FASTNN_DATA_DIR"
    small = _Data(found.first(2 * BATCH + 1), device)
    able = _able(small)
    if not able:
        return "no side can run"
    data = _Data(found.first(len(found.train_images) // 10 if quick else None), device)
    races: list[dict[str, Curve]] = []
    for seed in range(seeds):
        if races and time.monotonic() > end:
            break
        races.append(_race(data, able, seed))
    return {
        "network": data.widths,
        "batch": BATCH,
        "epochs": EPOCHS,
        "highest_rate": RATE,
        "target": TARGET,
        "seeds": len(races),
        "not native": _why_not_one_launch(small) if OURS in able else [],
        "sides": summed_up(races),
    }


def to_text(document: dict[str, Any]) -> str:
    """A line for each side."""
    network = "-".join(map(str, document["network"]))
    lines = [
        f"MNIST, {network}, batch {document['batch']}, {document['seeds']} seeds: training to "
        f"{document['target']:.0%}, medians {document['not native'] or ''}"
    ]
    for name, side in document["sides"].items():
        reached = side["median_to_target"]
        shown = "not reached" if reached is None else f"{reached * 1e3:.1f} ms"
        lines.append(
            f"  {name:<20} {shown}; all {document['epochs']} epochs {side['median_seconds'] * 1e3:.1f} ms, "
            f"{side['median_accuracy']:.2%}"
        )
    return "\n".join(lines)


def main() -> None:
    """Race on one device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--seconds", type=float, default=60.0, help="no seed is begun after these")
    parser.add_argument("--quick", action="store_true", help="a tenth of the training images")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    document = measure(given.device, given.seeds, seconds=given.seconds, quick=given.quick)
    if isinstance(document, str):
        print(document)
        return
    if given.output is not None:
        given.output.write_text(json.dumps(document, indent=1))
    print(to_text(document))


if __name__ == "__main__":
    main()
