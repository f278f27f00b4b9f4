"""docs/using-with.md: its recipes run, and the page shows what they do."""

from __future__ import annotations

import importlib.util
import itertools
import re
from pathlib import Path

import pytest

from fresh import Fresh, script

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "examples" / "using_with"
PAGE = ROOT / "docs" / "using-with.md"
NEEDS = {
    "cleanrl_td3.py": [],
    "stable_baselines3_ppo_sac.py": ["stable_baselines3", "gymnasium"],
    "skorch_mnist.py": ["skorch", "sklearn"],
    "lightning_digits.py": ["lightning", "sklearn"],
    "torch_tools.py": [],
}


def test_every_script_is_known() -> None:
    assert {path.name for path in SCRIPTS.glob("*.py")} == NEEDS.keys()


@pytest.mark.parametrize("name", NEEDS)
def test_each_recipe_runs(name: str, tmp_path: Path, run_fresh: Fresh) -> None:
    missing = [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    done = run_fresh(script(SCRIPTS / name, tmp_path))
    assert done.status == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def _words(code: str) -> str:
    """The code without indentation and line breaks, which depend on its context."""
    return " ".join(code.split())


def test_page_shows_the_scripts() -> None:
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    linked = [re.findall(r"\]\(\.\./examples/using_with/(\w+\.py)\)", section) for section in sections]
    assert sorted(itertools.chain(*linked)) == sorted(NEEDS)
    for section, (name,) in zip(sections, linked, strict=True):
        script = _words((SCRIPTS / name).read_text())
        blocks = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
        assert blocks, section
        for block in blocks:
            assert _words(block) in script, block
