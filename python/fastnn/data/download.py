"""Download of one file: bounded in time and size, checked before it gets its name."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

from fastnn.data.atomic import atomic_file
from fastnn.data.dataset import DataError

_PIECE = 1 << 16
_LARGEST = 64 << 20  # bytes; MNIST's largest file has 9.9 MB


def download(
    url: str,
    path: Path,
    *,
    check: Callable[[Path], object],
    stall_seconds: float = 10.0,
    total_seconds: float = 120.0,
) -> None:
    """Fetch ``url`` into ``path``, which is created or replaced only by a whole file that ``check`` accepts.

    Args:
        url: the address.
        path: the file to write; its directory is made if need be.
        check: called with the path of the downloaded, still temporary file; raises DataError to refuse it.
        stall_seconds: the longest wait for the connection and for each piece of the answer.
        total_seconds: the longest time for the whole file.

    Raises:
        DataError: ``url`` is no address, what answered does not speak HTTP, the answer was cut short, was too
            large, took too long, or ``check`` refused it.
        OSError: no answer, an HTTP error, or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + total_seconds
    with _open(url, stall_seconds) as answer, atomic_file(path) as file:
        size = 0
        try:
            # read1 returns what has arrived: read would wait for a full piece, past the deadline if it
            # trickles.
            while piece := answer.read1(_PIECE):
                size += len(piece)
                if size > _LARGEST:
                    raise DataError(f"larger than the limit of {_LARGEST} bytes")
                if time.monotonic() > deadline:
                    raise DataError(f"not complete after {total_seconds:g} s")
                file.write(piece)
        except HTTPException as error:
            raise DataError(f"the answer broke off after {size} bytes: {error!r}") from None
        promised = answer.headers.get("Content-Length")
        if promised is not None and promised.isdigit() and int(promised) != size:
            raise DataError(f"the answer broke off: expected {promised} bytes; came {size}")
        file.flush()
        check(Path(file.name))


def _open(url: str, stall_seconds: float) -> Any:
    """The answer to a request for ``url``, its body still to be read."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "fastnn"})
        return urllib.request.urlopen(request, timeout=stall_seconds)
    except OSError:
        raise
    except HTTPException as error:
        raise DataError(f"no HTTP answer: {error!r}") from None
    except ValueError as error:
        raise DataError(f"not an address: {error}") from None
