"""A pytest plugin that records the outcome of each test: `-p benchmarks.gpu_test_lines --lines FILE`.

Each event is written at once as a line of JSON, so that a process that dies leaves a record, including of the
test in which it died. A test that has begun according to the file is skipped: a second process runs the
remaining ones.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

DEVICE_LOST = 70  # exit status: nothing more can run on the device in this process


def _device_error() -> str | None:
    """The error of a kernel that has ended the process's use of the device, as an illegal address does."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error)
    return None


class _Lines:
    def __init__(self, path: Path) -> None:
        earlier = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self._done = {line["test"] for line in earlier if line["event"] == "began"}
        self._file = path.open("a")
        self._outcome, self._text, self._message = "passed", "", ""

    def _write(self, event: str, **values: Any) -> None:
        self._file.write(json.dumps({"event": event, **values}) + "\n")
        self._file.flush()

    @pytest.hookimpl(wrapper=True)  # last: after the selection, which must not depend on skipped tests
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None]:
        yield
        self._write("collected", tests=[item.nodeid for item in items])
        items[:] = [item for item in items if item.nodeid not in self._done]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            text = report.longreprtext
            self._write(
                "uncollected", test=report.nodeid, text=text, message=text.strip().rpartition("\n")[2]
            )

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._outcome, self._text, self._message = "passed", "", ""
        self._write("began", test=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._outcome = "failed"
            self._text += report.longreprtext + "\n"
            crash = getattr(report.longrepr, "reprcrash", None)
            self._message = self._message or (report.longreprtext if crash is None else crash.message)
        elif report.skipped and self._outcome == "passed":
            self._outcome = "skipped"

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        error = _device_error()
        if error is not None:
            self._outcome, self._message = "failed", self._message or error
        self._write("ended", test=nodeid, outcome=self._outcome, text=self._text, message=self._message)
        if error is not None:
            os._exit(DEVICE_LOST)  # all following tests would fail

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage, nodeid: str) -> None:
        text = f"{warning_message.category.__name__}: {warning_message.message}"
        self._write("warning", test=nodeid, text=text)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The file of lines."""
    parser.addoption("--lines", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    """Start recording. Warnings are not errors; those ignored by the project's settings stay ignored."""
    ignored = [line for line in config.getini("filterwarnings") if line != "error"]
    for line in ("default", *ignored):
        config.addinivalue_line("filterwarnings", line)
    config.pluginmanager.register(_Lines(config.getoption("--lines")))
