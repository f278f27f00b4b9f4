"""Where fastnn keeps what it can recreate."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$FASTNN_CACHE_DIR``, else ``$XDG_CACHE_HOME/fastnn``, else ``~/.cache/fastnn``.

    Raises:
        RuntimeError: the user has no home directory.
    """
    if own := os.environ.get("FASTNN_CACHE_DIR"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastnn"
    except RuntimeError:
        raise RuntimeError("there is no home directory, and FASTNN_CACHE_DIR is not set") from None
