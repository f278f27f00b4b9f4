"""Every program in examples/ runs unchanged, in its small setting, and what it claims holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fresh import Fresh, script

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
SHORT = ("linear_regression", "minimize", "mnist")


def numbers(value: Any) -> list[float]:
    """The numbers of a number or of lists of numbers, in order."""
    return [float(value)] if not isinstance(value, list) else [n for part in value for n in numbers(part)]


def holds(claim: dict[str, Any]) -> bool:
    """Whether the value of a claim is at_most, at_least or, within its tolerance, what is expected."""
    values = numbers(claim["value"])
    if "at_most" in claim:
        return all(v <= claim["at_most"] for v in values)
    if "at_least" in claim:
        return all(v >= claim["at_least"] for v in values)
    expected = numbers(claim["expected"])
    return len(values) == len(expected) and all(
        abs(v - e) <= claim["tolerance"] for v, e in zip(values, expected, strict=True)
    )


@pytest.mark.parametrize(
    "program",
    [pytest.param(p, id=p.stem, marks=() if p.stem in SHORT else pytest.mark.long) for p in PROGRAMS],
)
def test_an_example_runs_and_what_it_claims_holds(program: Path, tmp_path: Path, run_fresh: Fresh) -> None:
    out = tmp_path / "out"
    done = run_fresh(
        script(program, tmp_path, "--small", "--out", str(out)),
        FASTNN_ALWAYS_NATIVE="",  # the users' default
        FASTNN_CACHE_DIR=str(tmp_path / "cache"),
        FASTNN_MIRRORS="",  # no network
    )
    assert done.status == 0, done.stdout + done.stderr
    pictures = list(out.glob("*.png"))
    assert pictures
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["times"]
    assert metrics["data"]
    assert metrics["claims"]
    for name, claim in metrics["claims"].items():
        assert claim["holds"] is True, name
        assert holds(claim), (name, claim)


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ({"value": 1.0, "expected": 1.5, "tolerance": 0.5}, True),
        ({"value": 1.0, "expected": 1.5, "tolerance": 0.4}, False),
        ({"value": [[1, 2], [3, 4]], "expected": [[1, 2], [3, 5]], "tolerance": 0.0}, False),
        ({"value": [1, 2], "expected": [1], "tolerance": 9.0}, False),
        ({"value": 0.97, "at_least": 0.97}, True),
        ({"value": 0.96, "at_least": 0.97}, False),
        ({"value": 2, "at_most": 1}, False),
        ({"value": float("nan"), "expected": 0.0, "tolerance": 1.0}, False),
    ],
)
def test_a_claim_is_judged_by_its_numbers(claim: dict[str, Any], expected: bool) -> None:
    assert holds(claim) is expected


def test_the_gallery_shows_every_example() -> None:
    gallery = (EXAMPLES / "README.md").read_text()
    for program in PROGRAMS:
        assert f"({program.name})" in gallery, f"{program.name} has no row in examples/README.md"
        picture = EXAMPLES / "gallery" / f"{program.stem}.png"
        assert f"(gallery/{picture.name})" in gallery
        assert picture.stat().st_size < 200_000
