"""docs/quick-start.md: its code runs from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

from fresh import Fresh

PAGE = Path(__file__).parents[1] / "docs" / "quick-start.md"


def test_the_code_of_the_page_runs(run_fresh: Fresh) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    done = run_fresh("\n".join(blocks))
    assert done.status == 0, done.stdout + done.stderr
