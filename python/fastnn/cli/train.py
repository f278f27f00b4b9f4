"""``fastnn train``: an MLP on MNIST, with a report and a checkpoint."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastnn.cli.errors import CliError, UsageError, require, warn
from fastnn.cli.options import fraction, positive
from fastnn.training.config import DEFAULT_LR, DTYPES, SCHEDULES, TrainConfig

if TYPE_CHECKING:
    import torch

    from fastnn.data import Dataset
    from fastnn.training.checkpoint import Checkpoint
    from fastnn.training.distributed import Ranks
    from fastnn.training.run import Run

HELP = "train a multi-layer perceptron on MNIST with fused ops"

CHECKPOINT = "checkpoint.safetensors"
_DEFAULT_OUT = Path("runs/train")
_NEEDS = ("tqdm", "tabulate", "matplotlib", "safetensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options. Those of the run itself have no default here: TrainConfig, or a checkpoint, has it."""
    run = parser.add_argument_group("the run", argument_default=argparse.SUPPRESS)
    run.add_argument(
        "--layers",
        dest="hidden",
        type=_hidden,
        metavar="WIDTHS",
        help="widths of the hidden layers, such as 128 or 256-128 (default 128), or of all layers, such as "
        "784-128-10; the first and last follow the data set; other widths that end in 10 are ambiguous, and "
        "an error",
    )
    run.add_argument(
        "--epochs", type=positive, metavar="N", help="passes over the training images (default 5)"
    )
    run.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="images per step, of all processes together (default 128)",
    )
    run.add_argument(
        "--lr",
        type=_rate,
        metavar="RATE",
        help="highest learning rate of Adam (default "
        + ", ".join(f"{rate} with {schedule}" for schedule, rate in DEFAULT_LR.items())
        + ")",
    )
    run.add_argument("--schedule", choices=SCHEDULES, help="of the learning rate (default onecycle)")
    run.add_argument("--seed", type=_seed, metavar="N", help="of weights and image order (default 0)")
    run.add_argument("--dtype", choices=DTYPES, help="of parameters and computation (default float32)")
    run.add_argument("--train-samples", type=positive, metavar="N", help="train on the first N images only")
    run.add_argument(
        "--target",
        type=fraction,
        metavar="PART",
        help="stop at this test accuracy, such as 0.98, and report the training time until then, not "
        "counting the tests (eight per epoch); exit code 1 if it is not reached",
    )
    which = run.add_mutually_exclusive_group()
    which.add_argument(
        "--native",
        action="store_true",
        help="the same run in plain torch with its fused Adam, without fastnn",
    )
    which.add_argument(
        "--compare",
        action="store_true",
        default=False,
        help="run both, in turns, and show the speed-up (of the time to --target, if given)",
    )
    where = parser.add_argument_group("where it runs")
    where.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda if there is one"
    )
    where.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads per process (default: torch's choice)"
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where the MNIST files are (default: $FASTNN_DATA_DIR, else the cache, else a download, else "
        "scikit-learn's 8x8 digits)",
    )
    files.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"where results go (default {_DEFAULT_OUT}, or the folder of the resumed checkpoint)",
    )
    files.add_argument("--resume", type=Path, metavar="FILE", help="continue exactly from a checkpoint")
    files.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Train as `args` say; returns the exit code."""
    if args.compare and args.resume:
        raise UsageError("argument --resume: not allowed with argument --compare")
    if args.resume and args.resume.is_dir():
        raise UsageError(f"argument --resume: {args.resume} is a folder; give the checkpoint in it")
    require("train", *_NEEDS, *(["tensorboard"] if args.tensorboard else []))

    import torch

    from fastnn.training.distributed import RanksError, joined

    try:
        device = _device(args.device)
        with joined(device) as ranks:
            if args.threads:
                torch.set_num_threads(args.threads)
            return _run(args, device, ranks)
    except RanksError as error:
        raise CliError(str(error)) from None


def _run(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> int:
    from fastnn.data import DataError
    from fastnn.training.checkpoint import CheckpointError

    try:
        config, data, saved = ranks.from_first(lambda: _read(args))
        runs = _runs(args, config, data, device, saved, ranks)
    except (DataError, CheckpointError) as error:
        raise CliError(str(error)) from None
    except OSError as error:
        raise CliError(f"cannot read the data: {error}") from None
    out = args.out or (args.resume.parent if args.resume else _DEFAULT_OUT)
    directories = [out, out / "torch"][: len(runs)]
    try:
        if ranks.leads:
            for directory in directories:
                directory.mkdir(parents=True, exist_ok=True)
        return _train_and_report(args, runs, directories, ranks)
    except OSError as error:
        raise CliError(f"cannot write the results: {error}") from None


def _read(args: argparse.Namespace) -> tuple[TrainConfig, Dataset, Checkpoint | None]:
    """The settings, the data, and the checkpoint to continue from."""
    from fastnn.data import load
    from fastnn.training.checkpoint import Checkpoint

    # Before a download that it may not need.
    saved = Checkpoint.load(args.resume) if args.resume else None
    return _config(args, saved.config if saved else None), load(args.data_dir, warn), saved


def _runs(
    args: argparse.Namespace,
    config: TrainConfig,
    data: Dataset,
    device: torch.device,
    saved: Checkpoint | None,
    ranks: Ranks,
) -> list[Run]:
    """The runs asked for: one, or fastnn's and torch's."""
    from fastnn.training.run import Run

    if args.compare:
        return [Run(each, data, device, ranks=ranks) for each in (config, replace(config, native=True))]
    return [Run(config, data, device, saved, ranks)]


def _config(args: argparse.Namespace, saved: TrainConfig | None) -> TrainConfig:
    """The options given, over the checkpoint's settings or else the defaults."""
    names = [field.name for field in fields(TrainConfig)]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return replace(saved, **given) if saved else TrainConfig(**given)


def _train_and_report(
    args: argparse.Namespace, runs: list[Run], directories: list[Path], ranks: Ranks
) -> int:
    from fastnn.training.console import Console
    from fastnn.training.loop import Observer, deferred_interrupt, train

    checkpoints = [directory / CHECKPOINT for directory in directories]
    with contextlib.ExitStack() as stack:
        observer = Observer()
        if ranks.leads:
            for line in _introduction(runs):
                print(line)
            observer = stack.enter_context(Console(runs, progress=not args.no_progress))
        interrupted = stack.enter_context(deferred_interrupt())
        finished = train(runs, checkpoints, observer, lambda: ranks.any(interrupted()))
    if ranks.leads:
        _report(args, runs, directories, finished)
    if not finished:
        return 130
    return 0 if runs[0].config.target is None or all(each.seconds_to_target for each in runs) else 1


def _report(args: argparse.Namespace, runs: list[Run], directories: list[Path], finished: bool) -> None:
    from fastnn.training.events import write_events
    from fastnn.training.report import outcome, table, write_report

    if not finished:
        for each, directory in zip(runs, directories, strict=True):
            print(
                f"interrupted after step {each.step} of {each.steps}; "
                f"continue with: fastnn train --resume {directory / CHECKPOINT}",
                file=sys.stderr,
            )
        return
    print(f"\n{table(runs)}")
    write_report(directories[0], runs)
    for each, directory in zip(runs[1:], directories[1:], strict=True):
        write_report(directory, [each])
    if args.tensorboard:
        for each, directory in zip(runs, directories, strict=True):
            write_events(directory / "tensorboard", each)
    print(f"\nmetrics.json, curves.png, digits.png and {CHECKPOINT} are in {directories[0]}")
    if runs[0].config.target is not None:
        print()
        for each in runs:
            print(outcome(each), file=sys.stdout if each.seconds_to_target else sys.stderr)


def _introduction(runs: list[Run]) -> list[str]:
    import torch

    from fastnn._diagnostics import counted

    first, config = runs[0], runs[0].config
    parameters = sum(parameter.numel() for parameter in first.parts.model.parameters())
    return [
        f"data     {first.data.title}: {len(first.batches.images):,} training and "
        f"{len(first.data.test_labels):,} test images, from {first.data.source}",
        f"model    {'-'.join(map(str, first.layers))} with {parameters:,} parameters, {config.dtype}",
        f"run      {_epochs(config)}, batch {config.batch_size}, Adam, "
        f"{config.schedule} lr {config.lr:g}, seed {config.seed}",
        f"backend  {' | '.join(each.backend for each in runs)}, {first.device}, "
        f"{counted(torch.get_num_threads(), 'thread')}{_each_of(first.ranks.size)}\n",
    ]


def _epochs(config: TrainConfig) -> str:
    from fastnn._diagnostics import counted
    from fastnn.training.report import percent

    epochs = counted(config.epochs, "epoch")
    return (
        epochs if config.target is None else f"to {percent(config.target)} test accuracy in at most {epochs}"
    )


def _each_of(processes: int) -> str:
    return "" if processes == 1 else f" in each of {processes} processes"


def _device(choice: str) -> torch.device:
    import torch

    from fastnn.training.distributed import local_rank

    if choice == "cpu" or not torch.cuda.is_available():
        if choice == "cuda":
            raise CliError("--device cuda: this torch sees no CUDA device")
        return torch.device("cpu")
    number, devices = local_rank(), torch.cuda.device_count()
    if number >= devices:
        raise CliError(
            f"process {number} of this machine needs a CUDA device of its own; there are {devices}: start "
            "fewer processes, or give --device cpu"
        )
    if number:
        torch.cuda.set_device(number)
    return torch.device("cuda")


def _hidden(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(width) for width in text.split("-"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected widths such as 128, 256-128 or 784-128-10, got {text!r}"
        ) from None
    if min(widths) < 1:
        raise argparse.ArgumentTypeError(f"expected widths of at least 1, got {text!r}")
    if len(widths) > 1 and widths[-1] == 10:
        # Nobody ends 784 hidden units in 10 before the 10 classes: this is the chain written out in full.
        if widths[0] == 784:
            return widths[1:-1]
        inner = "-".join(map(str, widths[:-1]))
        raise argparse.ArgumentTypeError(
            f"{text!r} ends in the 10 classes but does not start with the 784 pixels; expected hidden widths "
            f"alone, such as {inner}, or those of all layers, such as 784-{inner}-10 "
            f"(784-{text}-10 if a hidden layer of 10 is meant)"
        )
    return widths


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^63 - 1, got {text!r}")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return rate
