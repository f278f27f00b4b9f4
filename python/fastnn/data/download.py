"""The downloader of one gzip-compressed file for `pooch`: unpacked on the way, bounded in time and size."""

from __future__ import annotations

import gzip
import time
import urllib.request
import zlib
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from fastnn.data.dataset import DataError

_PIECE = 1 << 16
_LARGEST = 64 << 20  # bytes; MNIST's largest file has 47 MB


class _Timely:
    """The body of an answer, which must be read before a deadline."""

    def __init__(self, answer: HTTPResponse, seconds: float) -> None:
        self._answer, self._seconds = answer, seconds
        self._deadline = time.monotonic() + seconds

    def read(self, size: int) -> bytes:
        """At most `size` bytes: what has arrived, since waiting for all of them could exceed the deadline."""
        if time.monotonic() > self._deadline:
            raise DataError(f"not complete after {self._seconds:g} s")
        return self._answer.read1(size)


def download(
    url: str,
    path: str | Path,
    _pooch: object = None,
    *,
    stall_seconds: float = 10.0,
    total_seconds: float = 120.0,
) -> None:
    """Unpack what is at ``url`` into the file ``path``.

    Args:
        url: the address of a gzip-compressed file.
        path: the file to write, which ``pooch`` checks, renames or removes.
        stall_seconds: the longest wait for the connection and for each piece of the answer.
        total_seconds: the longest time for the whole file.

    Raises:
        DataError: ``url`` is no address, what answered does not speak HTTP, the answer was cut short or
            damaged, was too large, or took too long.
        OSError: no answer, an HTTP error, no gzip, or the file cannot be written.
    """
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "fastnn"})
        with urllib.request.urlopen(request, timeout=stall_seconds) as answer, open(path, "wb") as file:
            unpacked = gzip.GzipFile(fileobj=_Timely(answer, total_seconds))  # type: ignore[call-overload]
            while piece := unpacked.read(_PIECE):
                if file.tell() + len(piece) > _LARGEST:
                    raise DataError(f"larger than the limit of {_LARGEST} bytes")
                file.write(piece)
    except (OSError, DataError):
        raise
    except HTTPException as error:
        raise DataError(f"no HTTP response: {error!r}") from None
    except ValueError as error:
        raise DataError(f"not an address: {error}") from None
    except (EOFError, zlib.error) as error:
        raise DataError(f"the response is truncated or damaged: {error}") from None
