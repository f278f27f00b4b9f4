"""`fastnn bench`: every op and a training step against torch and other libraries on this machine."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

import fastnn
from fastnn import _dispatch
from fastnn.cli.errors import CliError, UsageError, require
from fastnn.cli.options import positive

if TYPE_CHECKING:
    from benchmarks.case import Case
    from benchmarks.report import Report

HELP = "measure every op, its backward and a training step against torch and other libraries"

_ROUNDS, _QUICK_ROUNDS = 15, 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastnn bench`."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sweep", action="store_true", help="the training step over batch, width and depth")
    what.add_argument("--programs", action="store_true", help="whole training updates, captured")
    what.add_argument("--accuracy", action="store_true", help="training seconds to an accuracy on MNIST")
    what.add_argument("--numerics", action="store_true", help="rounding errors compared with torch's")
    what.add_argument(
        "--all",
        action="store_true",
        help="all reports, on one thread and on all (accuracy: on all); needs --out",
    )
    parser.add_argument("--threads", type=positive, help="threads for every side (default: torch's)")
    parser.add_argument(
        "--rounds",
        type=positive,
        help=f"interleaved rounds (default: {_ROUNDS}), seeds with --accuracy (not with --all)",
    )
    parser.add_argument("--quick", action="store_true", help=f"small cases only, {_QUICK_ROUNDS} rounds")
    parser.add_argument("--no-peers", action="store_true", help="measure against torch eager only")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write NAME.json, NAME.md and plots there")
    parser.add_argument(
        "--name", help="stem of the files in --out (default: bench; with --all a short name of the processor)"
    )


def load_benchmarks(module: str) -> ModuleType:
    """Import ``fastnn.benchmarks.<module>``.

    A wheel contains the package. In a source checkout its files are in the folder next to ``python/``, which
    is imported under the same name here.

    Raises:
        CliError: neither is there.
    """
    name = "fastnn.benchmarks"
    if importlib.util.find_spec(name) is None:
        folder = Path(fastnn.__file__).resolve().parents[2] / "benchmarks"
        if not folder.is_dir():
            raise CliError(f"the benchmarks are not installed, and there is no {folder}")
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
        sys.modules[name] = package
    return importlib.import_module(f"{name}.{module}")


def run(args: argparse.Namespace) -> int:
    """Measure, print and, with ``--out``, write; returns 1 where an answer was refused.

    Raises:
        CliError: nothing can be measured.
        UsageError: ``--all`` without ``--out``.
    """
    if args.all:
        return _run_all(args)
    of_cases = not (args.accuracy or args.numerics)
    cases = _select(args) if of_cases else []
    args.name = args.name or "bench"
    if args.list:
        print("\n".join([*(case.label for case in cases), *_select_memory(args)]))
        return 0
    if of_cases and not (cases or _select_memory(args)):
        raise CliError(f"no case contains {args.filter!r}; see --list")
    require("bench", "tabulate", "tqdm", *(["matplotlib"] if args.out else []))
    if (reason := _dispatch.torch_reason()) is not None:
        raise CliError(f"fastnn has no native kernels to measure: {reason}")
    if args.out is not None:
        _prepare_folder(args.out)
    with _held_to(args.threads or torch.get_num_threads()):
        if args.accuracy:
            return _measure_accuracy(args)
        if args.numerics:
            return _measure_numerics(args)
        report = _measure(args, cases)
    _write(args, report)
    return 1 if any(result.refused for result in report.results) else 0


def _run_all(args: argparse.Namespace) -> int:
    """Each report in a process of its own: a number of threads is settled when a library starts."""
    if args.out is None:
        raise UsageError("argument --all: needs --out")
    _prepare_folder(args.out)
    name = args.name or load_benchmarks("machine").short_name()
    counts = [args.threads] if args.threads else sorted({1, torch.get_num_threads()})
    rounds = ["--rounds", str(args.rounds)] if args.rounds else []
    reports: list[tuple[int, str, list[str]]] = []
    for count in counts:
        reports += [(count, "", rounds), (count, "-sweep", ["--sweep", *rounds])]
    reports.append((counts[0], "-programs", ["--programs", *rounds]))  # too small for a second thread
    # Time to an accuracy is one figure, taken on all threads only; its rounds are seeds.
    reports.append((counts[-1], "-accuracy", ["--accuracy"]))
    reports.append((counts[0], "-numerics", ["--numerics"]))  # the same on any number of threads
    passed = [*(["--quick"] if args.quick else []), *(["--no-peers"] if args.no_peers else [])]
    codes, made = [], {}
    for count, suffix, options in reports:
        report = f"{count}thread{'s' if count > 1 else ''}{suffix}"
        command = [sys.executable, "-m", "fastnn", "bench", "--threads", str(count), *options, *passed]
        command += ["--out", str(args.out), "--name", f"{name}-{report}"]
        codes.append(subprocess.run(command, check=False).returncode)
        written = args.out / f"{name}-{report}.json"
        if written.exists():  # not where MNIST was not found
            made[report] = json.loads(written.read_text(encoding="utf-8"))
            written.unlink()
    load_benchmarks("summary").add(args.out / f"{name}.json", made)
    return max(codes)


def _prepare_folder(out: Path) -> None:
    """Make it, and see that it can be written, before the measurement, which takes minutes."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise CliError(f"cannot write the results to {out}: {error.strerror}") from None


@contextmanager
def _held_to(threads: int) -> Iterator[None]:
    """Limit torch to this many threads, and this process and its children to this many processors.

    A library gains nothing from starting more threads than requested.
    """
    before = torch.get_num_threads()
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    torch.set_num_threads(threads)
    if threads < len(allowed):
        os.sched_setaffinity(0, allowed[-threads:])  # the first processors serve most interrupts
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if threads < len(allowed):
            os.sched_setaffinity(0, allowed)


def _select(args: argparse.Namespace) -> list[Case]:
    cases: list[Case] = load_benchmarks("cases").all_cases()
    group = "sweep" if args.sweep else "programs" if args.programs else "ops"
    threads = args.threads or torch.get_num_threads()
    return [
        case
        for case in cases
        if case.group == group
        and args.filter in case.label
        and (case.quick or not args.quick)
        and case.least_threads <= threads
    ]


def _select_memory(args: argparse.Namespace) -> list[str]:
    """The label of the comparison of memory, if it was asked for."""
    label: str = load_benchmarks("memory").LABEL
    others = args.sweep or args.programs or args.accuracy or args.numerics or args.quick
    return [] if others or args.filter not in label else [label]


def _settings(args: argparse.Namespace, rounds: int) -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "quick": args.quick,
        "filter": args.filter,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _measure(args: argparse.Namespace, cases: list[Case]) -> Report:
    from tqdm import tqdm

    machine, runner, report, roster = (
        load_benchmarks(name) for name in ("machine", "runner", "report", "peers.roster")
    )
    settings = _settings(args, args.rounds or (_QUICK_ROUNDS if args.quick else _ROUNDS))
    threads = settings["threads"]
    description = machine.describe()
    first = {count: machine.probe(count) for count in sorted({1, threads})}
    peers = roster.Roster() if args.no_peers else roster.assemble(threads, quick=args.quick)
    results = []
    with peers, tqdm(cases, unit="case", leave=False, file=sys.stderr) as progress:
        for case in progress:
            progress.set_postfix_str(case.label)
            results.append(runner.run_case(case, settings["rounds"], roster=peers))
    absent, memory = dict(peers.absent), []
    for label in _select_memory(args):
        try:
            memory = load_benchmarks("memory").measure(threads)
        except RuntimeError as error:
            absent[label] = str(error)
    # A machine shared with others may have been held back during the first probe.
    peaks = {count: peak.best_of(machine.probe(count)) for count, peak in first.items()}
    made: Report = report.Report(
        description,
        machine.versions(),
        settings,
        peaks,
        results,
        machine.last_level_cache(),
        peers.present,
        absent,
        memory,
    )
    return made


def _measure_accuracy(args: argparse.Namespace) -> int:
    accuracy = load_benchmarks("accuracy")
    document = accuracy.measure(_settings(args, args.rounds or accuracy.SEEDS), quick=args.quick)
    if document is None:
        print("fastnn bench: MNIST was not found: no time to accuracy", file=sys.stderr)
        return 0
    text = load_benchmarks("summary").to_text(document)
    markdown = accuracy.to_markdown(document)
    print(text if args.json else markdown)
    if args.out is not None:
        plot = args.out / f"{args.name}.svg"
        accuracy.save(document, plot)
        _write_texts(args, text, markdown + load_benchmarks("plots").to_markdown([plot]))
    return 0


def _measure_numerics(args: argparse.Namespace) -> int:
    numerics = load_benchmarks("numerics")
    document = numerics.measure(_settings(args, 1))
    text, markdown = load_benchmarks("summary").to_text(document), numerics.to_markdown(document)
    print(text if args.json else markdown)
    if args.out is not None:
        _write_texts(args, text, markdown)
    return 0


def _write_texts(args: argparse.Namespace, text: str, markdown: str) -> None:
    (args.out / f"{args.name}.json").write_text(text, encoding="utf-8")
    (args.out / f"{args.name}.md").write_text(markdown, encoding="utf-8")


def _write(args: argparse.Namespace, made: Report) -> None:
    report = load_benchmarks("report")
    document = report.to_json(made)
    text = load_benchmarks("summary").to_text(document)
    print(text if args.json else report.to_text(made))
    if args.out is None:
        return
    drawing = load_benchmarks("plots")
    plots = drawing.save_all(document, args.out / args.name)
    _write_texts(args, text, report.to_markdown(made) + drawing.to_markdown(plots))
    names = [f"{args.name}.json", f"{args.name}.md", *(path.name for path in plots)]
    print(f"wrote {', '.join(names)} in {args.out}", file=sys.stderr)
