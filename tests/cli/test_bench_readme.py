"""The tables of README.md come from the committed reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastnn.cli import bench

readme = bench.load_benchmarks("readme")

ROOT = Path(__file__).resolve().parents[2]


def report(seconds: float, **more: Any) -> dict[str, Any]:
    """Two steps, one of them refused, an op, and what `more` adds."""

    def result(op: str, shape: str, refused: str | None = None) -> dict[str, Any]:
        sides = ("fastnn", "torch", "torch fused")
        return {
            "op": op,
            "shape": shape,
            "dtype": "float32",
            "refused": refused,
            "times": {side: {"seconds": {"median": seconds}} for side in sides},
            "speedups": {"torch": {"median": 12.0}, "torch fused": {"median": 1.5}},
        }

    results = [
        result("training step", "784-28-10, batch 64"),
        result("training step", "784-128-10, batch 64", refused="wrong"),
        result("adam", "10M, 100 tensors"),
    ]
    return {"results": results, **more}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A README with three tables to fill, and two reports."""
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    memory = {name: {"peak": 3 << 20, "gradients": 1 << 20} for name in ("fastnn", "torch")}
    told = [{"shape": "1x2x3", "dtype": "float32", "sides": memory}]
    for name, document in (("1thread", report(1.5e-3, memory=told)), ("2threads", report(1e-3))):
        (results / f"{readme.MACHINE}-{name}.json").write_text(json.dumps(document))
    blocks = (f"<!-- bench:{name} -->\nold\n<!-- /bench -->\n" for name in ("step-1thread", "ops", "epoch"))
    text = "before\n" + "between\n".join(blocks) + "<!-- bench:memory -->\n<!-- /bench -->\nbehind\n"
    (tmp_path / "README.md").write_text(text)
    return tmp_path


EXPECTED = """before
<!-- bench:step-1thread -->
| network, batch | `TrainStep` | torch, fused Adam | torch |
| --- | ---: | ---: | ---: |
| 784-28-10, 64 | 1.50 ms | 1.50 ms | 1.50 ms |
<!-- /bench -->
between
<!-- bench:ops -->
| work | fastnn, one thread | speed-up, one thread | speed-up, two threads |
| --- | ---: | ---: | ---: |
| Adam, 10M parameters in 100 tensors | 1.50 ms | 12.0 / 1.50 | 12.0 / 1.50 |
<!-- /bench -->
between
<!-- bench:epoch -->
<!-- /bench -->
<!-- bench:memory -->
Peak memory of a forward and backward beyond what it starts with, in all and without the gradients:

| linear + cross-entropy in one | fastnn, peak | without gradients | torch, peak | without gradients |
| --- | ---: | ---: | ---: | ---: |
| 1 x 2 x 3, float32 | 3 MB | 2 MB | 3 MB | 2 MB |
<!-- /bench -->
behind
"""


def test_what_reports_lack_is_left_out_and_the_rest_of_the_text_stays(checkout: Path) -> None:
    assert readme.main([], checkout) == 0
    assert (checkout / "README.md").read_text() == EXPECTED


def test_check_tells_and_changes_nothing(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (checkout / "README.md").read_text()
    assert readme.main(["--check"], checkout) == 1
    assert "README.md differs" in capsys.readouterr().err
    assert (checkout / "README.md").read_text() == before
    readme.main([], checkout)
    assert readme.main(["--check"], checkout) == 0


@pytest.mark.parametrize(("median", "shown"), [(0.923, "0.92 s"), (None, "not reached")])
def test_an_accuracy_may_not_be_reached(checkout: Path, median: float | None, shown: str) -> None:
    path = checkout / "benchmarks" / "results" / f"{readme.MACHINE}-2threads-accuracy.json"
    path.write_text(json.dumps({"sides": {"fastnn": {"median_to_target": median}}}))
    (checkout / "README.md").write_text("<!-- bench:accuracy -->\n<!-- /bench -->\n")
    readme.main([], checkout)
    assert (checkout / "README.md").read_text().splitlines()[1:4] == [
        "| `TrainStep` |",
        "| ---: |",
        f"| {shown} |",
    ]


@pytest.mark.parametrize("text", ["<!-- bench:no-such -->\n<!-- /bench -->", "<!-- bench:ops -->\nprose"])
def test_a_wrong_marker_is_refused(checkout: Path, text: str) -> None:
    (checkout / "README.md").write_text(text)
    with pytest.raises(ValueError, match="expected closed markers of step-1thread"):
        readme.main([], checkout)
    assert (checkout / "README.md").read_text() == text


@pytest.mark.skipif(not (ROOT / "benchmarks" / "results").is_dir(), reason="needs the committed reports")
def test_the_committed_readme_agrees_with_the_committed_reports() -> None:
    assert readme.main(["--check"], ROOT) == 0
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"<!-- bench:{name} -->" in text for name in readme.TABLES)
