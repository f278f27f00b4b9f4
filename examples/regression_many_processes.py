"""A regression trained by one process and by two, which must give the same parameters.

A network 13-16-32-1 predicts a number y from 13 features; loss = mean((f(x) - y)^2), and SGD with momentum
lowers it. The gradient of a mean is the mean of the gradients of its halves:

    d loss(batch) / dp = ( d loss(first half) / dp + d loss(second half) / dp ) / 2

so that two processes, each with half of every batch, take the steps of one with all of it, if they average
their gradients. DistributedDataParallel does that while the backward pass runs.

    one process    fastnn.TrainStep: a step is one native call
    torch          the usual loop, beside it
    DataParallel   several GPUs in one process, where there are some
    two processes  `torchrun --nproc-per-node 2` runs this file again, over gloo: DistributedDataParallel
                   around a model that fastnn.convert has given fused layers, with fastnn's optimizer

For so small a network two processes are slower, not faster: they spend their time on talking to each other.

    python examples/regression_many_processes.py [--out DIR] [--csv FILE] [--small]

The data is scikit-learn's diabetes set with three products of its ten features added, or a CSV of numbers
with a header and the target in the last column, as the Boston house prices have it. The loss curves go to
TensorBoard (tensorboard --logdir DIR/tensorboard). Where chromium is installed, its page is photographed.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.distributed as dist
from sklearn.datasets import load_diabetes
from tensorboard.program import TensorBoard
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import fastnn

BATCH, PROCESSES = 88, 2
COLORS = {"one process": "#0b6e99", "torch": "#d9730d", "two processes": "#2e7d32", "DataParallel": "#6b6b6b"}
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


def load(csv: Path | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and targets, standardised: to train on, then to test on (every fifth row)."""
    if csv is None:
        x, y = load_diabetes(return_X_y=True)
        x = np.column_stack([x, x[:, 2] * x[:, 3], x[:, 2] * x[:, 8], x[:, 3] * x[:, 8]])  # bmi, pressure, s5
    else:
        try:
            table = np.loadtxt(csv, delimiter=",", skiprows=1, ndmin=2)
        except (OSError, ValueError) as error:
            raise SystemExit(f"{csv}: expected one line of names, then rows of numbers: {error}") from None
        spread = np.ptp(table, axis=0) if len(table) > 2 else np.zeros(1)
        if len(spread) < 2 or not np.isfinite(spread).all() or (spread == 0).any():
            raise SystemExit(f"{csv}: expected finite features and a target, none of them constant")
        x, y = table[:, :-1], table[:, -1]
    x, y = torch.from_numpy(x).float(), torch.from_numpy(y).float()[:, None]
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    test = torch.arange(len(x)) % 5 == 0
    return x[~test], y[~test], x[test], y[test]


def make_model(features: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1)
    return nn.Sequential(*layers)


def sgd(library: ModuleType, model: nn.Module) -> torch.optim.Optimizer:
    return library.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def batches(rows: int, epochs: int) -> list[Tensor]:
    """The rows of each batch, the same in every process; all batches of one size."""
    generator = torch.Generator().manual_seed(1)
    size = min(BATCH, rows // PROCESSES * PROCESSES)
    orders = (torch.randperm(rows, generator=generator) for _ in range(epochs))
    return [part for order in orders for part in order.split(size) if len(part) == size]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list) -> list[float]:
    """The usual loop; the loss of each step."""
    loss_fn, losses = nn.MSELoss(), []
    for x, y in data:
        optimizer.zero_grad()
        prediction = model(x)
        loss = loss_fn(prediction, y.to(prediction.device))  # DataParallel's is on the first GPU
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def worker(out: Path, data: list) -> None:
    """One of the processes: its share of each batch, gradients averaged by DistributedDataParallel."""
    dist.init_process_group("gloo")
    share = slice(dist.get_rank(), None, PROCESSES)
    model = fastnn.convert(make_model(data[0][0].shape[1]))
    parallel = nn.parallel.DistributedDataParallel(model)
    start = time.perf_counter()
    losses = train(parallel, sgd(fastnn, parallel), [(x[share], y[share]) for x, y in data])
    seconds = time.perf_counter() - start
    mean = torch.tensor(losses) / PROCESSES
    dist.all_reduce(mean)  # the mean of all halves is the loss of the whole batch
    if dist.get_rank() == 0:
        result = {"losses": mean.tolist(), "seconds": seconds, "state": model.state_dict()}
        torch.save(result, out / "two_processes.pt")
    dist.destroy_process_group()


def photograph(logs: Path, picture: Path) -> str | None:
    """TensorBoard's page as a PNG by a browser without a window; or why not."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return "no chromium is installed"
    board = TensorBoard()
    board.configure(logdir=str(logs), host="127.0.0.1", port=0, load_fast="false")
    address = board.launch()  # a thread serves it, at any free port
    give_up = time.monotonic() + 60
    command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=820,560"]
    command += ["--virtual-time-budget=60000", f"--screenshot={picture}", f"{address}?darkMode=false#scalars"]
    try:
        while time.monotonic() < give_up and not json.load(urllib.request.urlopen(f"{address}data/runs")):
            time.sleep(0.5)  # it has not read the runs yet
        subprocess.run(command, check=True, timeout=120, capture_output=True)
    except (subprocess.SubprocessError, OSError) as error:
        return f"the browser failed: {error}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description="A regression trained by one process and by two.")
    parser.add_argument("--out", type=Path, default=Path("runs/regression_many_processes"))
    parser.add_argument("--csv", type=Path, help="features and a target instead of the diabetes set")
    parser.add_argument("--small", action="store_true", help="few epochs, no browser")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the network is too small for more
    epochs = 20 if args.small else 100
    x, y, test_x, test_y = load(args.csv)
    data = [(x[rows], y[rows]) for rows in batches(len(x), epochs)]
    args.out.mkdir(parents=True, exist_ok=True)
    if args.worker:
        worker(args.out, data)
        return 0

    models = {name: make_model(x.shape[1]) for name in ("one process", "torch")}
    step = fastnn.TrainStep(models["one process"], nn.MSELoss(), sgd(fastnn, models["one process"]))
    ways = {
        "one process": lambda part: torch.stack([step(*batch) for batch in part]).tolist(),
        "torch": partial(train, models["torch"], sgd(torch, models["torch"])),
    }
    if torch.cuda.is_available():
        models["DataParallel"] = make_model(x.shape[1]).cuda()
        parallel = nn.DataParallel(models["DataParallel"])
        ways["DataParallel"] = partial(train, parallel, sgd(fastnn, parallel))
    else:
        print("DataParallel: skipped, there is no GPU")
    losses, seconds = {name: [] for name in ways}, dict.fromkeys(ways, math.inf)
    per_epoch = len(data) // epochs
    for first in tqdm(range(0, len(data), per_epoch), unit="epoch", disable=None):
        for name, train_epoch in ways.items():
            start = time.perf_counter()
            losses[name] += train_epoch(data[first : first + per_epoch])
            # The quickest epoch counts: the others met other programs.
            seconds[name] = min(seconds[name], epochs * (time.perf_counter() - start))

    # What the command torchrun runs: this file twice at once.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    command += [__file__, "--worker", *sys.argv[1:]]
    subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1", **os.environ})
    made = torch.load(args.out / "two_processes.pt")
    losses["two processes"], seconds["two processes"] = made["losses"], made["seconds"]
    models["two processes"] = make_model(x.shape[1])
    models["two processes"].load_state_dict(made["state"])

    logs, picture = args.out / "tensorboard", args.out / "tensorboard.png"
    shutil.rmtree(logs, ignore_errors=True)
    picture.unlink(missing_ok=True)
    for name, values in losses.items():
        with SummaryWriter(logs / name) as writer:
            for number, value in enumerate(values):
                writer.add_scalar("training loss", value, number)
    reason = "--small" if args.small else photograph(logs, picture)
    if reason:
        print(f"TensorBoard's page: skipped, {reason}")

    claims = {}
    if args.csv is None:  # nobody knows how well a file of one's own can be predicted
        error = (models["one process"](test_x) - test_y).square().mean() / test_y.var()
        claims["R^2 on the test rows"] = claim(1 - error.item(), at_least=0.3)
    flat = {name: nn.utils.parameters_to_vector(m.cpu().parameters()).detach() for name, m in models.items()}
    for name in list(models)[1:]:
        for what, values in (("parameters", flat), ("losses", losses)):
            apart = torch.as_tensor(values[name]) - torch.as_tensor(values["one process"])
            text = f"{name}: {what}, largest difference from one process"
            claims[text] = claim(float(apart.abs().max()), at_most=1e-4)
    times = {f"{name}, us a step": 1e6 * value / len(data) for name, value in seconds.items()}
    times["speed-up over torch"] = seconds["torch"] / seconds["one process"]
    title = "diabetes (scikit-learn)" if args.csv is None else args.csv.name
    metrics = {"claims": claims, "times": times, "data": title}
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    title += f": {x.shape[1]}-16-32-1, mean squared error"
    draw(args.out / "regression_many_processes.png", title, losses, times, picture)
    for name, value in times.items():
        print(f"{name}: {value:.3g}")
    for name, made in claims.items():
        print(f"{'ok  ' if made['holds'] else 'FAIL'} {name}: {made['value']:.4g}")
    return 0 if all(made["holds"] for made in claims.values()) else 1


def claim(value: float, **limit: float) -> dict:
    """A number, what it must be, and whether it is."""
    low, high = limit.get("at_least", value), limit.get("at_most", value)
    return {"value": value, **limit, "holds": low <= value <= high}


def draw(path: Path, title: str, losses: dict, times: dict, page: Path) -> None:
    places, heights = ("AB;CC", (4, 5)) if page.exists() else ("AB", (4,))
    size = (11, sum(heights))
    figure, axes = plt.subplot_mosaic(places, figsize=size, height_ratios=heights, layout="constrained")
    figure.suptitle(title)
    curves, bars, *more = axes.values()
    for width, (name, values) in zip((6, 3.5, 1.5, 1), losses.items(), strict=False):
        smooth = torch.tensor(values).unfold(0, max(1, len(values) // 40), 1).mean(1)
        curves.plot(smooth, label=name, color=COLORS[name], linewidth=width)
    curves.set(title="The same steps, however many processes", xlabel="step", ylabel="smoothed training loss")
    curves.legend()
    us = [times[f"{name}, us a step"] for name in losses]
    drawn = bars.barh(list(losses), us, color=[COLORS[name] for name in losses])
    bars.bar_label(drawn, fmt=" %.0f us")
    bars.invert_yaxis()
    bars.set(title="Time of a step, one thread a process", xlabel="microseconds")
    bars.set(xscale="log", xlim=(10, 1e5))
    for axis in more:
        axis.imshow(plt.imread(page))
        axis.set_title("TensorBoard's page, in a browser without a window")
        axis.set_axis_off()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    sys.exit(main())
