"""The report of measurements in a browser, and its table in the docs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastnn.cli import bench

browser, committed, readme, summary = (
    bench.load_benchmarks(name) for name in ("browser", "committed", "readme", "summary")
)


def quartiles(median: float) -> dict[str, float]:
    return {"q1": median / 2, "median": median, "q3": 2 * median}


def document() -> dict[str, Any]:
    seconds = {"fastnn": 1.5e-3, "TensorFlow.js wasm": 12e-3, "TensorFlow.js cpu": 66e-3}
    return {
        "machine": {"cpu": "A Processor", "cores": 2, "load_average": 0.25},
        "versions": {"fastnn": "1", "Chromium": "2", "TensorFlow.js": "3"},
        "settings": {"rounds": 4, "seeds": 2, "date": "today"},
        "results": [
            {
                "op": browser.OP,
                "shape": browser.SHAPE,
                "dtype": "float32",
                "refused": None,
                "times": {side: {"seconds": quartiles(value)} for side, value in seconds.items()},
                "speedups": {"TensorFlow.js wasm": quartiles(8.0), "TensorFlow.js cpu": quartiles(44.0)},
            }
        ],
        "accuracy": {"target": 0.975, "to_target": [4.0, None], "median_to_target": None},
    }


def test_the_report_has_both_libraries() -> None:
    text = browser.to_markdown(document())
    assert "A Processor, 2 cores; one thread" in text
    assert "fastnn 1, Chromium 2, TensorFlow.js 3" in text
    assert "| TensorFlow.js wasm |  12.0 ms |              8.00 x |  4.00 - 16.00 |" in text
    assert "97.5% test accuracy" in text
    assert "median not reached, seeds 4.00 s, not reached." in text
    assert "97.5%" not in browser.to_markdown({**document(), "accuracy": None})


def test_the_table_of_the_docs(tmp_path: Path) -> None:
    summary.add(tmp_path / f"{committed.MACHINE}.json", {"web": document()})
    text = readme.rewritten("<!-- bench:web -->\n<!-- /bench -->\n", committed.Reports(tmp_path), "page")
    assert text.splitlines()[1:-1] == [
        "| network, batch | fastnn | TensorFlow.js, wasm | TensorFlow.js, cpu |",
        "| --- | ---: | ---: | ---: |",
        "| 784-128-10, 64 | 1.50 ms | 12.0 ms, 8.00 times | 66.0 ms, 44.0 times |",
    ]


def test_what_is_missing_is_named(monkeypatch, capsys) -> None:
    def missing(rounds: int, seeds: int) -> None:
        raise browser.NoBrowserError("a browser needs selenium")

    monkeypatch.setattr(browser, "measure", missing)
    assert browser.main([]) == 1
    assert capsys.readouterr().err == "benchmarks.browser: error: a browser needs selenium\n"
