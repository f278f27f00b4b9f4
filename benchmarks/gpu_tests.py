"""Runs test files, each in a process of its own, several at a time, and summarises their outcomes.

A test that ends its process, or the process's use of the device, costs only itself: the rest of its file
runs in another. Warnings are not errors here (torch issues some only on a GPU); they are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from .gpu_test_lines import DEVICE_LOST

ROOT = Path(__file__).resolve().parents[1]
FOUND = 86  # exit status of the sanitizer if it found something
# The sanitizer's lines, without those that report nothing.
_FINDING = re.compile(r"========= (?!COMPUTE-SANITIZER|.*SUMMARY: 0 )\S.*")
SHOWN = 12  # lines of the sanitizer's output per file
MESSAGE_LINES = 4  # of a failure
ALSO = 3  # tests that failed in the same way
WARNING = 300  # characters of one


@dataclass
class Report:
    """The outcome of the tests of a file, as far as its lines tell."""

    collected: set[str] = field(default_factory=set)
    last: str | None = None  # the test that started last
    running: bool = False  # whether it has not finished
    passed: int = 0
    skipped: int = 0
    begun: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # the message of each
    warnings: list[tuple[str, str]] = field(default_factory=list)  # text and test

    @property
    def not_reached(self) -> int:
        """Tests that no process reached."""
        return len(self.collected) - self.begun


def read(path: Path) -> Report:
    """The report of a file of lines."""
    report = Report()
    for text in path.read_text().splitlines() if path.exists() else []:
        line = json.loads(text)
        event = line["event"]
        if event == "collected":
            report.collected.update(line["tests"])
        elif event == "began":
            report.begun += 1
            report.last, report.running = line["test"], True
        elif event == "warning":
            report.warnings.append((line["text"], line["test"]))
        elif event == "uncollected" or line["outcome"] == "failed":
            report.failed[line["test"]] = line["message"]
            report.running = False
        else:
            report.running = False
            report.passed += line["outcome"] == "passed"
            report.skipped += line["outcome"] == "skipped"
    return report


@dataclass
class Run:
    """How the processes of a file ended."""

    file: str
    report: Report = field(default_factory=Report)
    died: list[str] = field(default_factory=list)  # why each process that did not exit normally died
    seconds: float | None = None  # None: there was no time to start it
    findings: list[str] = field(default_factory=list)  # of the sanitizer

    @property
    def is_good(self) -> bool:
        """Whether all of its tests have run and passed."""
        whole = self.seconds is not None and not self.report.not_reached
        return whole and not (self.report.failed or self.died or self.findings)


def _how(status: int) -> str:
    if status == DEVICE_LOST:
        return "the device was lost"
    return signal.Signals(-status).name if status < 0 else f"exit {status}"


class Runner:
    """Starts pytest, with one command line for all files.

    Args:
        logs: the folder for each file's output and lines.
        options: of pytest.
        sanitizer: options of compute-sanitizer; without any, pytest runs alone.
        file_seconds: the time limit of a file.
        end: the overall deadline, by `time.monotonic`.
    """

    def __init__(
        self, logs: Path, options: Sequence[str], sanitizer: Sequence[str], file_seconds: float, end: float
    ) -> None:
        self.logs = logs
        self._options = list(options)
        self._under: list[str] = []
        if sanitizer:
            own = ["--error-exitcode", str(FOUND), "--target-processes", "all"]
            self._under = ["compute-sanitizer", *sanitizer, *own]
        self._file_seconds = file_seconds
        self._end = end

    def _start(
        self, log: IO[bytes], lines: Path, arguments: Iterable[str], under: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        pytest = [sys.executable, "-m", "pytest", "-q", "-c", "pyproject.toml", "--tb=short"]
        plugins = ["-p", "no:cacheprovider", "-p", "benchmarks.gpu_test_lines", "--lines", str(lines)]
        # The tests need none of the installed plugins, and any of them may interfere.
        environment = {**os.environ, "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return subprocess.Popen(
            [*under, *pytest, *plugins, *self._options, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @staticmethod
    def _wait(process: subprocess.Popen[bytes], end: float) -> int | None:
        """Its exit status; None if time ran out and it was killed with all processes that it had started."""
        try:
            return process.wait(timeout=max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None

    def _paths(self, name: str) -> tuple[Path, Path]:
        stem = re.sub(r"[^\w.-]+", "_", name).strip("_.")
        lines, log = (self.logs / f"{stem}.{suffix}" for suffix in ("jsonl", "log"))
        lines.unlink(missing_ok=True)
        log.unlink(missing_ok=True)
        return lines, log

    def collect(self, tests: Sequence[str]) -> list[tuple[str, list[str]]]:
        """The files that have tests to run, with pytest's arguments for each; those with many tests first."""
        lines, log = self._paths("collection")
        with log.open("wb") as output:
            self._wait(self._start(output, lines, ["--collect-only", *tests]), self._end)
        report = read(lines)
        if not report.collected and not report.failed:
            print(log.read_text(errors="replace"))
        count = Counter(test.partition("::")[0] for test in [*report.collected, *report.failed])
        named: dict[str, list[str]] = defaultdict(list)
        for test in tests:
            file, _, name = test.partition("::")
            if name:
                named[file].append(test)
        return [
            (file, named.get(file, [file])) for file, _ in sorted(count.items(), key=lambda f: (-f[1], f[0]))
        ]

    def run(self, file: str, arguments: Sequence[str]) -> Run:
        """Run a file, in as many processes as it takes to reach its last test."""
        run = Run(file)
        began = time.monotonic()
        if began > self._end:
            return run
        end = min(began + self._file_seconds, self._end)
        lines, log = self._paths(file)
        found = False
        with log.open("ab") as output:
            while True:
                begun = run.report.begun
                status = self._wait(self._start(output, lines, arguments, self._under), end)
                run.report = report = read(lines)
                within = report.running or status == DEVICE_LOST
                where = report.last if within else "outside its tests"
                if status is None:
                    run.died.append(f"no end after {time.monotonic() - began:.0f} s: {where}")
                elif status == FOUND:
                    found = True
                elif status not in (0, 1, 5) and not (status == 2 and report.failed and not report.begun):
                    # Ignore pytest's own status after its last test, or after a file that it could not
                    # import.
                    run.died.append(f"{_how(status)}: {where}")
                if status is None or report.begun == begun or not report.not_reached:
                    break
        run.seconds = time.monotonic() - began
        if self._under:
            run.findings = _FINDING.findall(log.read_text(errors="replace")) or ["see its log"] * found
        return run


def _table(runs: Sequence[Run]) -> list[str]:
    heads = "passed", "failed", "skipped", "died", "not run", "seconds"
    lines = [" ".join(f"{head:>7}" for head in heads) + "  file"]
    for run in sorted(runs, key=lambda run: run.file):
        report = run.report
        counts = report.passed, len(report.failed), report.skipped, len(run.died), report.not_reached
        seconds = "-" if run.seconds is None else f"{run.seconds:.0f}"
        lines.append(" ".join(f"{value:>7}" for value in (*counts, seconds)) + f"  {run.file}")
    return lines


def _failures(runs: Sequence[Run]) -> list[str]:
    """The first lines of each failure; within a file, those with the same beginning are grouped: one fault
    may fail many."""
    lines: list[str] = []
    for run in runs:
        alike: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for test, message in run.report.failed.items():
            alike[message.strip().partition("\n")[0]].append((test, message.strip()))
        for (first, message), *others in alike.values():
            lines.append(f"failed {1 + len(others)}x: {first}")
            lines += [f"    {line}" for line in message.splitlines()[:MESSAGE_LINES]]
            lines += [f"  also {test}" for test, _ in others[:ALSO]]
    return lines


def _warnings(runs: Sequence[Run]) -> list[str]:
    found = [warning for run in runs for warning in run.report.warnings]
    first = dict(reversed(found))
    counts = Counter(text for text, _ in found).most_common()
    return [
        f"warning {count}x: {text.strip()[:WARNING]} (first in {first[text] or 'collection'})"
        for text, count in counts
    ]


def _files(some: Sequence[object]) -> str:
    return "1 file" if len(some) == 1 else f"{len(some)} files"


def summary(runs: Sequence[Run], seconds: float) -> list[str]:
    """Lines about all files, the most important last: a log is read from its end."""
    lines = [*_table(runs), *_warnings(runs), *_failures(runs)]
    for run in runs:
        lines += [f"{run.file}: {finding}" for finding in run.findings[:SHOWN]]
        lines += [f"died: {run.file}: {reason}" for reason in run.died]
    late = [run.file for run in runs if run.seconds is None]
    if late:
        lines.append(f"no time left for {_files(late)}: {' '.join(late)}")
    reports = [run.report for run in runs]
    counts = {
        "passed": sum(report.passed for report in reports),
        "failed": sum(len(report.failed) for report in reports),
        "skipped": sum(report.skipped for report in reports),
        "died": sum(len(run.died) for run in runs),
        "not run": sum(report.not_reached for report in reports),
        "warnings": sum(len(report.warnings) for report in reports),
        "with findings": sum(bool(run.findings) for run in runs),
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return [*lines, f"{_files(runs)}: {told or 'no tests'} in {seconds:.0f} s"]


def main() -> int:
    """Run the tests; 0 if all ran, none failed and one passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tests", nargs="+", help="folders, files or ids")
    parser.add_argument("--logs", type=Path, required=True, help="folder for the output of each file")
    parser.add_argument("--pytest", default="-m cuda", help="options of pytest (default: %(default)s)")
    parser.add_argument("--sanitizer", default="", help="run under compute-sanitizer, with these options")
    parser.add_argument("--jobs", type=int, default=8, help="files at a time (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=600.0, help="for all files (default: %(default)s)")
    parser.add_argument("--file-seconds", type=float, default=120.0, help="for one (default: %(default)s)")
    given = parser.parse_args()
    began = time.monotonic()
    given.logs.mkdir(parents=True, exist_ok=True)
    options, sanitizer = shlex.split(given.pytest), shlex.split(given.sanitizer)
    runner = Runner(given.logs.resolve(), options, sanitizer, given.file_seconds, began + given.seconds)
    with ThreadPoolExecutor(given.jobs) as pool:
        runs = list(pool.map(lambda job: runner.run(*job), runner.collect(given.tests)))
    print("\n".join(summary(runs, time.monotonic() - began)))
    passed = any(run.report.passed for run in runs)  # without a device all are skipped
    return 0 if passed and all(run.is_good for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
