"""Times CUDA ops against torch eager and torch.compile on the GPU: a JSON file and a line for each case.

`sweep` is what the choice between fastnn's products and torch's is to be set by, `bench` all else. The most
telling cases come first; those for which no time is left are named as such. Times are in microseconds, each
with the part of it that the floor is: bytes over the bandwidth of a copy, or operations over the rate of a
large product, both measured here.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastnn
from fastnn import functional

from . import gpu_accuracy, gpu_products, gpu_steps, gpu_sweep
from .gpu_timing import Calls, Case, Place, ceilings, measured, to_text

LOGITS = ((64, 10), (65536, 10), (32768, 1024), (4096, 32000), (1024, 131072))
COMPILED = ((32768, 1024), (4096, 32000))  # also against torch.compile, which takes seconds to compile


def _relu(place: Place, dtype: torch.dtype) -> Calls:
    x = place.randn(1 << 13, 1 << 14, dtype=dtype)
    return {"fastnn": partial(functional.relu, x), "torch": partial(F.relu, x)}


def _gradient(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, target: Tensor) -> object:
    return torch.autograd.grad(loss(x, target), x)


def _cross_entropy(place: Place, rows: int, classes: int) -> Calls:
    logits, target = place.leaf(rows, classes, dtype=torch.bfloat16), place.randint(classes, rows)
    losses: dict[str, Callable[..., Tensor]] = {"fastnn": functional.cross_entropy, "torch": F.cross_entropy}
    if (rows, classes) in COMPILED:
        losses["compile"] = place.compiled(F.cross_entropy)
    return {name: partial(_gradient, loss, logits, target) for name, loss in losses.items()}


def elementwise_cases(place: Place) -> list[Case]:
    """ReLU, and cross-entropy with its gradient."""
    found = [
        Case(f"relu 128M {name}", partial(_relu, place, dtype), (2 << 27) * dtype.itemsize)
        for dtype, name in gpu_products.NAMES.items()
    ]
    for rows, classes in LOGITS:
        make = partial(_cross_entropy, place, rows, classes)
        found.append(Case(f"cross_entropy {rows}x{classes} bfloat16", make, 4 * rows * classes))
    return found


GROUPS: dict[str, tuple[Callable[[Place], list[Case]], ...]] = {
    "sweep": (gpu_sweep.cases,),
    "bench": (
        gpu_steps.epoch_cases,
        gpu_steps.step_cases,
        elementwise_cases,
        gpu_steps.optimizer_cases,
        gpu_steps.master_cases,
        gpu_steps.clip_cases,
        gpu_products.cases,
    ),
}


def report(what: str, place: Place, seconds: float, output: Path) -> None:
    """Measure the cases of one kind that start within `seconds`."""
    end = time.monotonic() + seconds
    ceiling = ceilings(place)
    device = torch.cuda.get_device_name() if place.is_cuda else str(place.device)
    rates = ", ".join(f"{name} {rate / 1e12:.1f}" for name, rate in ceiling.flops.items())
    print(f"{device}: copy {ceiling.bandwidth / 1e12:.2f} TB/s; TFLOP/s: {rates}")
    rows: list[dict[str, Any]] = []
    late: list[str] = []
    document: dict[str, Any] = {
        "device": device,
        "rehearsal": place.rehearsal,
        "bandwidth": ceiling.bandwidth,
        "flops": ceiling.flops,
        "info": fastnn.info().as_dict(),
        "cases": rows,
        "no time left": late,
    }
    if what == "bench" and not place.rehearsal:  # it can be rehearsed separately
        document["MNIST"] = mnist = gpu_accuracy.measure(place.device, seconds=seconds / 4)
        print(mnist if isinstance(mnist, str) else gpu_accuracy.to_text(mnist))
    for group in GROUPS[what]:
        for case in group(place):
            if time.monotonic() > end:
                late.append(case.name)
                continue
            try:
                rows.append(measured(case, place, ceiling))
            except Exception as error:  # inputs that cannot be made
                print(f"{case.name}: {error}")
                continue
            print(to_text(rows[-1]))
            output.write_text(json.dumps(document, indent=1))  # survives later failures
    if what == "sweep":
        document["crossings"] = lines = gpu_sweep.crossings(rows)
        print("\n".join(lines))
    output.write_text(json.dumps(document, indent=1))
    if late:
        print(f"no time left for {len(late)}: {'; '.join(late)}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=list(GROUPS))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600.0, help="no case is begun after these")
    parser.add_argument(
        "--rehearse", action="store_true", help="small sizes on the CPU: no figure means anything"
    )
    given = parser.parse_args()
    place = Place(torch.device("cpu" if given.rehearse else "cuda"), given.rehearse)
    stream = torch.cuda.Stream() if place.is_cuda else None  # the default stream cannot be captured
    with torch.cuda.stream(stream):
        report(given.what, place, given.seconds, given.output)


if __name__ == "__main__":
    main()
