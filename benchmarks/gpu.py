"""Times CUDA ops against torch eager and torch.compile on the GPU: a JSON file and a short table.

The most telling cases come first; those for which no time is left are named as such.
Floors are bytes over the bandwidth of a device-to-device copy that is measured here (read plus written).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastnn
import fastnn.nn
import fastnn.optim
from benchmarks import gpu_accuracy, gpu_products
from fastnn import functional

Calls = dict[str, Callable[[], object]]

REPEATS = 20
CALLS = 10  # between two events
LONGEST = 2.0  # seconds that a contender may take, unless three calls take more


def seconds(call: Callable[[], object]) -> float:
    """Median time of a call on the device, after a warm-up."""
    call()
    torch.cuda.synchronize()
    began = time.monotonic()
    call()
    torch.cuda.synchronize()
    once = time.monotonic() - began
    calls = CALLS if once * CALLS * REPEATS < LONGEST else 1
    repeats = REPEATS if calls > 1 else max(3, min(REPEATS, int(LONGEST / once)))
    for _ in range(calls // 2):
        call()
    times: list[float] = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3 / calls)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes a second of a copy of 1 GiB within the device, reading and writing counted."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / seconds(lambda: target.copy_(source))


def gradient_of(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, target: Tensor) -> Callable[[], object]:
    """A call of forward and backward."""
    return lambda: torch.autograd.grad(loss(x, target), x)


def stepper(
    make: Callable[..., torch.optim.Optimizer], sizes: list[int], graph: bool
) -> Callable[[], object]:
    """A call that takes one step with gradients that are there already, captured in a CUDA graph or not."""
    parameters = [torch.nn.Parameter(torch.randn(n, device="cuda")) for n in sizes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = make(parameters)
    if not graph:
        return optimizer.step
    optimizer.step()  # makes the state
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        optimizer.step()

    def replay(owner: object = (captured, optimizer)) -> None:  # the graph reads the optimizer's memory
        captured.replay()

    return replay


def optimizer_cases() -> list[tuple[str, int, Calls]]:
    """Steps alone; what is compulsory in float32: p, g and the state read, p and the state written."""
    found: list[tuple[str, int, Calls]] = []
    makers: tuple[tuple[str, dict[str, Any], int], ...] = (
        ("Adam", {}, 28),
        ("SGD", {"momentum": 0.9}, 20),
        ("Adagrad", {}, 20),
        ("RMSprop", {}, 20),
    )
    shapes = (("MLP 784-128-10", [100352, 128, 1280, 10]), ("10M in 100", [100_000] * 100), ("100M", [10**8]))
    for name, options, bytes_a_parameter in makers:
        ours = partial(getattr(fastnn.optim, name), **options)
        theirs = partial(getattr(torch.optim, name), **options)
        for shape, sizes in shapes:
            calls: Calls = {"fastnn": stepper(ours, sizes, False), "torch": stepper(theirs, sizes, False)}
            if name != "RMSprop":
                calls["torch fused"] = stepper(partial(theirs, fused=True), sizes, False)
            if name == "Adam":
                fused = partial(theirs, fused=True, capturable=True)
                calls["fastnn graph"] = stepper(partial(ours, capturable=True), sizes, True)
                calls["torch fused graph"] = stepper(fused, sizes, True)
            found.append((f"{name} {shape}", bytes_a_parameter * sum(sizes), calls))
    return found


def master_cases() -> list[tuple[str, int, Calls]]:
    """Adam on bfloat16 with float32 masters: g is read, p written, m, v and the master are both: 28 bytes.

    Torch keeps masters as parameters of their own: the gradients are cast to them and they are cast back.
    """
    sizes = [100_000] * 100
    halves = [torch.nn.Parameter(torch.randn(n, device="cuda").bfloat16()) for n in sizes]
    for half in halves:
        half.grad = torch.randn_like(half)
    ours = fastnn.optim.Adam(halves, master_weights=True)
    masters = [torch.nn.Parameter(half.detach().float()) for half in halves]
    copies = [half.detach().clone() for half in halves]
    gradients = [half.grad for half in halves if half.grad is not None]
    for wide in masters:
        wide.grad = torch.empty_like(wide)
    wide_gradients = [wide.grad for wide in masters if wide.grad is not None]
    theirs = torch.optim.Adam(masters, fused=True)

    def torch_step() -> None:
        torch._foreach_copy_(wide_gradients, gradients)
        theirs.step()
        torch._foreach_copy_(copies, [wide.detach() for wide in masters])

    calls: Calls = {"fastnn": ours.step, "torch fused": torch_step}
    return [("Adam 10M in 100, bf16 with masters", 28 * sum(sizes), calls)]


def clip_cases() -> list[tuple[str, int, Calls]]:
    """Clipping by the norm: gradients are read for it, then read and written, since the bound is below it."""
    found: list[tuple[str, int, Calls]] = []
    for name, sizes in (("MLP 784-128-10", [100352, 128, 1280, 10]), ("10M in 100", [100_000] * 100)):
        calls: Calls = {}
        for side, clip in (
            ("fastnn", fastnn.nn.utils.clip_grad_norm_),
            ("torch", torch.nn.utils.clip_grad_norm_),
        ):
            parameters = [torch.nn.Parameter(torch.zeros(n, device="cuda")) for n in sizes]
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            calls[side] = lowering(partial(clip, parameters), sum(sizes) ** 0.5)
        found.append((f"clip_grad_norm_ {name}", 12 * sum(sizes), calls))
    return found


def lowering(call: Callable[[float], object], bound: float) -> Callable[[], object]:
    """Calls with a bound that each lowers a little, so that all of them have to scale."""

    def lower() -> object:
        nonlocal bound
        bound *= 0.999
        return call(bound)

    return lower


def epoch_cases() -> list[tuple[str, int, Calls]]:
    """An epoch of 784-128-10 over 60,000 images, of which nothing but their bytes must move."""
    images = torch.randint(256, (60000, 784), dtype=torch.uint8, device="cuda")
    labels = torch.randint(10, (60000,), device="cuda")
    order = torch.randperm(60000, device="cuda")
    found: list[tuple[str, int, Calls]] = []
    for batch in (64, 128):
        layers = torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
        model = torch.nn.Sequential(*layers).cuda()
        step = fastnn.TrainStep(model, F.cross_entropy, fastnn.optim.Adam(model.parameters()))
        calls: Calls = {"fastnn": partial(step.epoch, images, labels, batch, order)}
        found.append((f"epoch of 784-128-10, batch {batch}", images.numel(), calls))
    return found


def captured_by_hand(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> Callable[[], object]:
    """A call that copies a batch and replays torch's own step, captured as torch's documentation advises."""
    batch, classes = x.clone(), y.clone()

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(batch), classes).backward()
        optimizer.step()

    replay_step = gpu_accuracy.capture(step, x.device)

    def replay() -> None:
        batch.copy_(x)
        classes.copy_(y)
        replay_step()

    return replay


def eager_step(
    model: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> Callable[[], object]:
    """A call that takes a step with torch."""

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def step_cases() -> list[tuple[str, int, Calls]]:
    """Training steps; what is compulsory: parameters and Adam's state read and written, the batch read."""
    found: list[tuple[str, int, Calls]] = []
    for sizes, batch in (([784, 128, 10], 64), ([784, 1024, 1024, 10], 512)):
        x = torch.randn(batch, sizes[0], device="cuda")
        y = torch.randint(sizes[-1], (batch,), device="cuda")

        def network(linear: type[torch.nn.Linear], sizes: list[int] = sizes) -> torch.nn.Sequential:
            layers = [m for k, n in pairwise(sizes) for m in (linear(k, n), torch.nn.ReLU())]
            return torch.nn.Sequential(*layers[:-1]).cuda()

        ours = network(fastnn.nn.Linear)
        plain, by_hand, compiled = (network(torch.nn.Linear) for _ in range(3))
        step = fastnn.TrainStep(ours, fastnn.functional.cross_entropy, fastnn.optim.Adam(ours.parameters()))
        for _ in range(3):  # the third captures
            step(x, y)
        fused = partial(torch.optim.Adam, fused=True)
        calls: Calls = {
            "fastnn": partial(step, x, y),
            "torch fused": eager_step(plain, fused(plain.parameters()), x, y),
            "compile": eager_step(torch.compile(compiled), fused(compiled.parameters()), x, y),
            "torch fused graph": captured_by_hand(
                by_hand, fused(by_hand.parameters(), capturable=True), x, y
            ),
        }
        compulsory = 24 * sum(p.numel() for p in ours.parameters()) + 4 * x.numel()
        found.append((f"step {'-'.join(map(str, sizes))}, batch {batch}", compulsory, calls))
    return found


def elementwise_cases() -> list[tuple[str, int, Calls]]:
    """ReLU and cross-entropy."""
    found: list[tuple[str, int, Calls]] = []
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(1 << 27, device="cuda").to(dtype)
        calls: Calls = {"fastnn": partial(functional.relu, x), "torch": partial(F.relu, x)}
        calls["compile"] = partial(torch.compile(F.relu), x)
        found.append((f"relu 128M {dtype}", 2 * x.numel() * x.element_size(), calls))
    for rows, classes in ((64, 10), (65536, 10), (32768, 1024), (4096, 32000), (1024, 131072)):
        logits = torch.randn(rows, classes, device="cuda").bfloat16().requires_grad_()
        target = torch.randint(classes, (rows,), device="cuda")
        compiled = torch.compile(F.cross_entropy)
        contenders = {"fastnn": functional.cross_entropy, "torch": F.cross_entropy, "compile": compiled}
        calls = {name: gradient_of(loss, logits, target) for name, loss in contenders.items()}
        found.append((f"cross_entropy {rows}x{classes} bf16, with gradient", 4 * rows * classes, calls))
    return found


def cases() -> Iterator[tuple[str, int, Calls]]:
    """Name, bytes that must move, and one call for each contender; made as they are asked for."""
    groups = (
        epoch_cases,
        step_cases,
        elementwise_cases,
        optimizer_cases,
        master_cases,
        clip_cases,
        gpu_products.cases,
    )
    for group in groups:
        try:
            made = group()
        except Exception as error:  # nor must one group cost the others theirs
            print(f"{group.__module__}.{group.__name__}: {error}")
        else:
            yield from made


def measured(name: str, bytes_moved: int, calls: Calls, bandwidth: float) -> dict[str, Any]:
    """The seconds of each contender, and why ours, if so, did not run natively."""
    row: dict[str, Any] = {"case": name, "floor": bytes_moved / bandwidth, "not native": []}
    ours = next(iter(calls))
    for contender, call in calls.items():
        try:
            if contender == ours:
                decisions = fastnn.explain(call).decisions
                row["not native"] = [d.reason for d in decisions if d.reason is not None]
            row[contender] = seconds(call)
        except Exception as error:  # a contender that fails must not cost the others' figures
            row[contender] = None
            print(f"{name}, {contender}: {error}")
    return row


def main() -> None:
    """Run all cases for which there is time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600.0, help="no case is begun after these")
    given = parser.parse_args()
    end = time.monotonic() + given.seconds
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: copy {bandwidth / 1e12:.2f} TB/s; microseconds")
    mnist = gpu_accuracy.measure(torch.device("cuda"), seconds=given.seconds / 4)
    print(mnist if isinstance(mnist, str) else gpu_accuracy.to_text(mnist))
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    report = {
        "device": torch.cuda.get_device_name(),
        "copy bandwidth": bandwidth,
        "info": fastnn.info().as_dict(),
        "MNIST": mnist,
        "seconds": rows,
        "no time left": left_out,
    }
    for name, bytes_moved, calls in cases():
        if time.monotonic() > end:
            left_out.append(name)
            continue
        row = measured(name, bytes_moved, calls, bandwidth)
        rows.append(row)
        times = [f"{k} {v * 1e6:.1f}" for k, v in row.items() if k not in ("case", "not native") and v]
        # What is measured outlives what comes after.
        print(f"{name:<45} {', '.join(times)} {row['not native'] or ''}")
        given.output.write_text(json.dumps(report, indent=1))
    given.output.write_text(json.dumps(report, indent=1))
    if left_out:
        print(f"no time left for {len(left_out)}: {'; '.join(left_out)}")


if __name__ == "__main__":
    main()
