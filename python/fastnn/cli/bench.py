"""`fastnn bench`: every op and a training step against torch on this machine."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

import fastnn
from fastnn import _backend
from fastnn.cli.errors import CliError, require
from fastnn.cli.options import positive

if TYPE_CHECKING:
    from benchmarks.case import Case
    from benchmarks.report import Report

HELP = "measure every op, its backward and a training step against torch"

_ROUNDS, _QUICK_ROUNDS = 25, 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastnn bench`."""
    parser.add_argument("--threads", type=positive, help="threads for both sides (default: torch's)")
    parser.add_argument("--rounds", type=positive, help=f"interleaved rounds (default: {_ROUNDS})")
    parser.add_argument("--quick", action="store_true", help=f"small cases only, {_QUICK_ROUNDS} rounds")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write NAME.json, NAME.md and NAME.png there")
    parser.add_argument("--name", default="bench", help="stem of the files in --out (default: bench)")


def load_benchmarks(module: str) -> ModuleType:
    """Import ``fastnn.benchmarks.<module>``.

    A wheel carries the package. In a source checkout its files are the folder beside ``python/``, which is
    put in the same place here.
    """
    name = "fastnn.benchmarks"
    if importlib.util.find_spec(name) is None:
        folder = Path(fastnn.__file__).resolve().parents[2] / "benchmarks"
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
    """
    cases = _select(args)
    if args.list:
        print("\n".join(case.label for case in cases))
        return 0
    if not cases:
        raise CliError(f"no case contains {args.filter!r}; see --list")
    require("bench", "tabulate", "tqdm", *(["matplotlib"] if args.out else []))
    if (reason := _backend.torch_reason()) is not None:
        raise CliError(f"there is nothing of fastnn to measure: {reason}")
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads or before)
    try:
        report = _measure(args, cases)
    finally:
        torch.set_num_threads(before)
    _write(args, report)
    return 1 if any(result.refused for result in report.results) else 0


def _select(args: argparse.Namespace) -> list[Case]:
    cases: list[Case] = load_benchmarks("cases").all_cases()
    return [case for case in cases if args.filter in case.label and (case.quick or not args.quick)]


def _measure(args: argparse.Namespace, cases: list[Case]) -> Report:
    from tqdm import tqdm

    machine, runner, report = (load_benchmarks(name) for name in ("machine", "runner", "report"))
    rounds = args.rounds or (_QUICK_ROUNDS if args.quick else _ROUNDS)
    threads = torch.get_num_threads()
    description = machine.describe()
    settings = {
        "threads": threads,
        "rounds": rounds,
        "quick": args.quick,
        "filter": args.filter,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    first = {count: machine.probe(count) for count in sorted({1, threads})}
    results = []
    with tqdm(cases, unit="case", leave=False, file=sys.stderr) as progress:
        for case in progress:
            progress.set_postfix_str(case.label)
            results.append(runner.run_case(case, rounds))
    # A machine shared with others may have been held back during the first probe.
    peaks = {count: peak.best_of(machine.probe(count)) for count, peak in first.items()}
    made: Report = report.Report(
        description, machine.versions(), settings, peaks, results, machine.last_level_cache()
    )
    return made


def _write(args: argparse.Namespace, made: Report) -> None:
    report = load_benchmarks("report")
    text = json.dumps(report.to_json(made), indent=1)
    print(text if args.json else report.to_text(made))
    if args.out is None:
        return
    os.makedirs(args.out, exist_ok=True)
    stem = args.out / args.name
    stem.with_name(f"{args.name}.json").write_text(text + "\n", encoding="utf-8")
    stem.with_name(f"{args.name}.md").write_text(report.to_markdown(made), encoding="utf-8")
    load_benchmarks("chart").save(made, stem.with_name(f"{args.name}.png"))
    print(f"wrote {stem}.json, .md and .png", file=sys.stderr)
