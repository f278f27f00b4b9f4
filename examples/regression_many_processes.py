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

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.distributed as dist
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import fastnn

BATCH, PROCESSES = 88, 2
COLORS = {"one process": "#0b6e99", "torch": "#d9730d", "two processes": "#2e7d32", "DataParallel": "#6b6b6b"}


def load(csv: Path | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and targets, standardised: to train on, then to test on (every fifth row)."""
    if csv is None:
        x, y = load_diabetes(return_X_y=True)
        x = np.column_stack([x, x[:, 2] * x[:, 3], x[:, 2] * x[:, 8], x[:, 3] * x[:, 8]])  # bmi, pressure, s5
    else:
        table = np.loadtxt(csv, delimiter=",", skiprows=1)
        x, y = table[:, :-1], table[:, -1]
    x, y = torch.from_numpy(x).float(), torch.from_numpy(y).float()[:, None]
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    test = torch.arange(len(x)) % 5 == 0
    return x[~test], y[~test], x[test], y[test]


def make_model(features: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1)
    )  # fmt: skip


def batches(rows: int, epochs: int) -> list[Tensor]:
    """The rows of each batch, the same in every process; all batches of one size."""
    generator = torch.Generator().manual_seed(1)
    size = min(BATCH, rows // PROCESSES * PROCESSES)
    orders = (torch.randperm(rows, generator=generator) for _ in range(epochs))
    return [part for order in orders for part in order.split(size) if len(part) == size]


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: list[tuple[Tensor, Tensor]]
) -> list[float]:
    """The usual loop; the loss of each step."""
    loss_fn, losses = nn.MSELoss(), []
    for x, y in data:
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def worker(out: Path, csv: Path | None, epochs: int) -> None:
    """One of the processes: its share of each batch, gradients averaged by DistributedDataParallel."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    x, y, _, _ = load(csv)
    model = make_model(x.shape[1])
    fastnn.convert(model)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = fastnn.optim.SGD(parallel.parameters(), lr=0.01, momentum=0.9)
    mine = [rows[rank::PROCESSES] for rows in batches(len(x), epochs)]
    start = time.perf_counter()
    losses = torch.tensor(train(parallel, optimizer, [(x[rows], y[rows]) for rows in mine]))
    seconds = time.perf_counter() - start
    dist.all_reduce(losses)  # the mean of all halves is the loss of the whole batch
    if rank == 0:
        result = {"losses": (losses / PROCESSES).tolist(), "seconds": seconds, "state": model.state_dict()}
        torch.save(result, out / "two_processes.pt")
    dist.destroy_process_group()


def two_processes(out: Path, csv: Path | None, epochs: int) -> dict:
    """Run this file twice at once, by what the command torchrun runs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    command += [__file__, "--worker", "--out", str(out), "--epochs", str(epochs)]
    command += ["--csv", str(csv)] if csv else []
    subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1", **os.environ})
    return torch.load(out / "two_processes.pt")


def photograph(logs: Path, picture: Path) -> str | None:
    """TensorBoard's page as a PNG by a browser without a window; or why not."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return "no chromium is installed"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    host, port = address.split(":")
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(logs),
        "--host",
        host,
        "--port",
        port,
    ]
    server = subprocess.Popen(command, cwd=logs.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://{address}/data/runs", timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.5)
        flags = [
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            "--window-size=820,560",
            "--virtual-time-budget=60000",
        ]
        flags += [f"--screenshot={picture}", f"http://{address}/?darkMode=false#scalars"]
        subprocess.run([browser, *flags], check=True, timeout=120, capture_output=True)
    except (subprocess.SubprocessError, OSError) as error:
        return f"the browser failed: {error}"
    finally:
        server.terminate()
        server.wait()
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description="A regression trained by one process and by two.")
    parser.add_argument("--out", type=Path, default=Path("runs/regression_many_processes"))
    parser.add_argument("--csv", type=Path, help="13 features and a target in place of the diabetes set")
    parser.add_argument("--small", action="store_true", help="few epochs, no browser")
    parser.add_argument("--epochs", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    epochs = args.epochs or (20 if args.small else 100)
    torch.set_num_threads(1)  # the network is too small for more
    if args.worker:
        worker(args.out, args.csv, epochs)
        return 0
    args.out.mkdir(parents=True, exist_ok=True)

    x, y, test_x, test_y = load(args.csv)
    data = [(x[rows], y[rows]) for rows in batches(len(x), epochs)]
    models = {"one process": make_model(x.shape[1]), "torch": make_model(x.shape[1])}
    losses, seconds = {}, {}

    optimizer = fastnn.optim.SGD(models["one process"].parameters(), lr=0.01, momentum=0.9)
    step = fastnn.TrainStep(models["one process"], nn.MSELoss(), optimizer)
    torch_optimizer = torch.optim.SGD(models["torch"].parameters(), lr=0.01, momentum=0.9)
    losses["one process"], losses["torch"], spent = [], [], ([], [])
    per_epoch = len(data) // epochs
    for first in tqdm(range(0, len(data), per_epoch), unit="epoch", disable=None):
        part = data[first : first + per_epoch]
        start = time.perf_counter()
        losses["one process"] += torch.stack([step(*batch) for batch in part]).tolist()
        middle = time.perf_counter()
        losses["torch"] += train(models["torch"], torch_optimizer, part)
        spent[0].append(middle - start)
        spent[1].append(time.perf_counter() - middle)
    for name, values in zip(models, spent, strict=True):
        seconds[name] = epochs * min(values)  # the quickest epoch: the others met other programs

    if torch.cuda.is_available():
        models["DataParallel"] = make_model(x.shape[1]).cuda()
        parallel = nn.DataParallel(models["DataParallel"])
        optimizer = fastnn.optim.SGD(parallel.parameters(), lr=0.01, momentum=0.9)
        start = time.perf_counter()
        losses["DataParallel"] = train(parallel, optimizer, [(a.cuda(), b.cuda()) for a, b in data])
        seconds["DataParallel"] = time.perf_counter() - start
        models["DataParallel"].cpu()
    else:
        print("DataParallel: skipped, there is no GPU")
    made = two_processes(args.out, args.csv, epochs)
    models["two processes"] = make_model(x.shape[1])
    models["two processes"].load_state_dict(made["state"])
    losses["two processes"], seconds["two processes"] = made["losses"], made["seconds"]
    with torch.no_grad():
        r2 = {n: 1 - float((m(test_x) - test_y).square().mean() / test_y.var()) for n, m in models.items()}
    logs = args.out / "tensorboard"
    shutil.rmtree(logs, ignore_errors=True)
    for name, values in losses.items():
        with SummaryWriter(logs / name) as writer:
            for number, value in enumerate(values):
                writer.add_scalar("training loss", value, number)
    picture = args.out / "tensorboard.png"
    picture.unlink(missing_ok=True)
    reason = "--small" if args.small else photograph(logs, picture)
    if reason:
        print(f"TensorBoard's page: skipped, {reason}")

    claims = {}
    if args.csv is None:  # nobody knows how well a file of one's own can be predicted
        claims["R^2 on the test rows"] = claim(r2["one process"], at_least=0.3)
    truth = torch.cat([p.flatten() for p in models["one process"].state_dict().values()])
    for name in list(models)[1:]:
        state = torch.cat([p.flatten() for p in models[name].state_dict().values()])
        claims[f"{name}: parameters, largest difference from one process"] = claim(
            float((state - truth).abs().max()), at_most=1e-4
        )
        apart = (torch.tensor(losses[name]) - torch.tensor(losses["one process"])).abs().max()
        claims[f"{name}: losses, largest difference from one process"] = claim(float(apart), at_most=1e-4)
    times = {f"{name}, us a step": 1e6 * value / len(data) for name, value in seconds.items()}
    times["speed-up over torch"] = seconds["torch"] / seconds["one process"]
    title = "diabetes (scikit-learn)" if args.csv is None else args.csv.name
    metrics = {"claims": claims, "times": times, "data": title}
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
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
    figure = plt.figure(figsize=(11, 9 if page.exists() else 4), layout="constrained")
    top, *bottom = figure.subfigures(2, 1, height_ratios=(4, 5)) if page.exists() else [figure]
    curves, bars = top.subplots(1, 2)
    for width, (name, values) in zip((6, 3.5, 1.5, 1), losses.items(), strict=False):
        smooth = torch.tensor(values).unfold(0, max(1, len(values) // 40), 1).mean(1)
        curves.plot(smooth, label=name, color=COLORS[name], linewidth=width)
    curves.set(
        title="The same steps, however many processes", xlabel="step", ylabel="training loss, smoothed"
    )
    curves.legend(frameon=False)
    drawn = bars.barh(
        list(losses), [times[f"{n}, us a step"] for n in losses], color=[COLORS[n] for n in losses]
    )
    bars.bar_label(drawn, fmt=" %.0f us")
    bars.invert_yaxis()
    bars.set(
        title="Time of a step, one thread a process", xlabel="microseconds", xscale="log", xlim=(10, 1e5)
    )
    for axis in (curves, bars):
        axis.spines[["top", "right"]].set_visible(False)
    for part in bottom:
        axis = part.subplots()
        axis.imshow(plt.imread(page))
        axis.set_title("TensorBoard's page, in a browser without a window")
        axis.set_axis_off()
    figure.suptitle(f"{title}: 13-16-32-1, mean squared error")
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    sys.exit(main())
