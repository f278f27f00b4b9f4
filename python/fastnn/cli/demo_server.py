"""The server of ``fastnn demo``: static files, and MNIST under the names that the page asks for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fastnn.data.mnist import MNIST_FILES, locate


class Server(ThreadingHTTPServer):
    """Serves the files of a folder, and those of the folder of MNIST, if given, under ``/data/mnist/``.

    Each has the name with ``.gz`` there, compressed or not: the page tells by its first bytes.

    Raises:
        OSError: the address cannot be used.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], page: Path, mnist: Path | None) -> None:
        self.page = page
        self.mnist = (
            {f"/data/mnist/{file.name}.gz": str(locate(mnist, file)) for file in MNIST_FILES} if mnist else {}
        )
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

    def translate_path(self, path: str) -> str:
        assert isinstance(self.server, Server)
        return self.server.mnist.get(path) or super().translate_path(path)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # so that a rebuilt page is loaded
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass
