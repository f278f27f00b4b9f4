"""The tables of README.md and docs/, and README's picture, come from the committed reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastnn.cli import bench

committed, headline, readme, summary = (
    bench.load_benchmarks(name) for name in ("committed", "headline", "readme", "summary")
)

ROOT = Path(__file__).resolve().parents[2]


def report(seconds: float, **more: Any) -> dict[str, Any]:
    """Two steps, one of them refused, an op, and what `more` adds."""

    def result(op: str, shape: str, refused: str | None = None) -> dict[str, Any]:
        times = {"fastnn": seconds, "torch": 2 * seconds, "torch fused": 1.5 * seconds}
        return {
            "op": op,
            "shape": shape,
            "dtype": "float32",
            "refused": refused,
            "flops": 3e6,
            "times": {side: {"seconds": {"median": median}} for side, median in times.items()},
            "speedups": {"torch": {"median": 12.0}, "torch fused": {"median": 1.5}},
        }

    results = [
        result("training step", "784-28-10, batch 64"),
        result("training step", "784-128-10, batch 64", refused="wrong"),
        result("adam", "10M, 100 tensors"),
    ]
    machine, versions = {"cpu": "a processor"}, {"torch": "2.0+cpu"}
    return {
        "results": results,
        "peaks": [{"fma_float32": 1e11}],
        "machine": machine,
        "versions": versions,
        **more,
    }


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A README with tables to fill, a page of docs with one more, and two reports."""
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    memory = {name: {"peak": 3 << 20, "gradients": 1 << 20} for name in ("fastnn", "torch")}
    told = [{"shape": "1x2x3", "dtype": "float32", "sides": memory}]
    made = {"1thread": report(1.5e-3, memory=told), "2threads": report(1e-3)}
    summary.add(results / f"{committed.MACHINE}.json", made)
    blocks = (f"<!-- bench:{name} -->\nold\n<!-- /bench -->\n" for name in ("step-1thread", "ops", "epoch"))
    text = "before\n" + "between\n".join(blocks) + "<!-- bench:memory -->\n<!-- /bench -->\nafter\n"
    (tmp_path / "README.md").write_text(text)
    (tmp_path / "docs" / "kernels").mkdir(parents=True)
    (tmp_path / "docs" / "kernels" / "step.md").write_text("<!-- bench:floors -->\n<!-- /bench -->\n")
    return tmp_path


EXPECTED = """before
<!-- bench:step-1thread -->
| network, batch | `TrainStep` | torch, fused Adam | torch |
| --- | ---: | ---: | ---: |
| 784-28-10, 64 | 1.50 ms | 2.25 ms | 3.00 ms |
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
after
"""

EXPECTED_PAGE = """<!-- bench:floors -->
| network, batch | products at the peak | `TrainStep` | torch |
| --- | ---: | ---: | ---: |
| 784-28-10, 64 | 30.0 us | 1.50 ms | 3.00 ms |
<!-- /bench -->
"""


def test_what_reports_lack_is_left_out_and_the_rest_of_the_text_stays(checkout: Path) -> None:
    assert readme.main([], checkout) == 0
    assert (checkout / "README.md").read_text() == EXPECTED
    assert (checkout / "docs" / "kernels" / "step.md").read_text() == EXPECTED_PAGE


def test_the_picture_shows_what_the_reports_say(checkout: Path) -> None:
    readme.main([], checkout)
    picture = checkout / readme.PICTURE
    shown = "784-28-10, 64: fastnn, TrainStep 2.0, torch, fused Adam 1.3"
    assert f"<dc:description>{shown}</dc:description>" in picture.read_text()
    drawn = picture.read_bytes()
    headline.draw(picture, committed.Reports(checkout / "benchmarks" / "results"))
    assert picture.read_bytes() == drawn  # it is the same in every run


def test_check_reports_a_picture_that_shows_something_else(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme.main([], checkout)
    picture = checkout / readme.PICTURE
    picture.write_text(picture.read_text().replace("TrainStep 2.0", "TrainStep 2.1"))
    assert readme.main(["--check"], checkout) == 1
    assert "docs/headline.svg differ from" in capsys.readouterr().err
    picture.unlink()
    assert readme.main(["--check"], checkout) == 1


def test_check_reports_and_changes_nothing(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (checkout / "README.md").read_text()
    assert readme.main(["--check"], checkout) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "README.md, docs/kernels/step.md, docs/headline.svg differ from benchmarks/results"
    )
    assert (checkout / "README.md").read_text() == before
    readme.main([], checkout)
    assert readme.main(["--check"], checkout) == 0


@pytest.mark.parametrize(("median", "shown"), [(0.923, "0.92 s"), (None, "not reached")])
def test_an_accuracy_may_not_be_reached(checkout: Path, median: float | None, shown: str) -> None:
    path = checkout / "benchmarks" / "results" / f"{committed.MACHINE}.json"
    summary.add(path, {"2threads-accuracy": {"sides": {"fastnn": {"median_to_target": median}}}})
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
    with pytest.raises(ValueError, match=r"README.md: expected closed markers of headlines, step-1thread"):
        readme.main([], checkout)
    assert (checkout / "README.md").read_text() == text


@pytest.mark.skipif(not (ROOT / "benchmarks" / "results").is_dir(), reason="needs the committed reports")
def test_the_committed_pages_agree_with_the_committed_reports() -> None:
    assert readme.main(["--check"], ROOT) == 0
    text = "".join(page.read_text(encoding="utf-8") for page in readme.pages(ROOT))
    assert all(text.count(f"<!-- bench:{name} -->") == 1 for name in readme.TABLES)
