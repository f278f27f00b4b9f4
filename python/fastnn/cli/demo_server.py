"""The server of ``fastnn demo``: static files, and MNIST under the names that the page asks for."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastnn.data import Dataset


class Server(ThreadingHTTPServer):
    """Serves the files of a folder, and those of MNIST as ``/data/mnist/<name>.gz`` if given.

    Raises:
        OSError: the address cannot be used.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], page: Path, mnist: Dataset | None) -> None:
        self.page = page
        self.data = _files(mnist) if mnist else {}
        super().__init__(address, _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer one request."""
        with suppress(ConnectionError):  # a page that is closed while it loads
            _Handler(request, client_address, self, directory=str(self.page))


class _Handler(SimpleHTTPRequestHandler):
    # The system's own table may have other types, with which browsers refuse modules.
    extensions_map: Mapping[str, str] = {  # type: ignore[assignment]
        "": "application/octet-stream",
        ".css": "text/css",
        ".html": "text/html",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        data = self.server.data.get(self.path)
        if data is None:
            super().do_GET()
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # so that a rebuilt page is loaded
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _files(data: Dataset) -> dict[str, bytes]:
    """The four files by their paths. They are not compressed, which the page recognises by their first
    bytes."""
    shape = (-1, data.height, data.width)
    parts = {
        "train": (data.train_images, data.train_labels),
        "t10k": (data.test_images, data.test_labels),
    }
    files = {}
    for part, (images, labels) in parts.items():
        files[f"/data/mnist/{part}-images-idx3-ubyte.gz"] = _idx(images.reshape(shape))
        files[f"/data/mnist/{part}-labels-idx1-ubyte.gz"] = _idx(labels.astype(np.uint8))
    return files


def _idx(values: npt.NDArray[np.uint8]) -> bytes:
    """An IDX file of bytes."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
