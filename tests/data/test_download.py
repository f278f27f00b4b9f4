"""Downloads from a server on this machine that behaves well, badly, or not at all."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastnn._cache import cache_dir
from fastnn.data import DataError, load
from fastnn.data.download import download
from fastnn.data.mnist import MnistUnavailableError, load_mnist


class Server:
    """Serves `files` by path; those in `cut` are sent by half, those in `trickle` byte by byte."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.trickle: set[str] = set()
        self.asked: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                if self.path not in server.files:
                    self.send_error(404)
                    return
                data = server.files[self.path]
                trickles = self.path in server.trickle
                self.send_response(200)
                self.send_header("Content-Length", str(10**9 if trickles else len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if self.path in server.cut else data)
                while trickles:  # until the client hangs up
                    self.wfile.write(bytes(1))
                    time.sleep(0.02)

            def log_message(self, *arguments: object) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # the client may hang up, as some tests intend
                    super().handle()

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def dead_address() -> str:
    """An address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"


def offer(server: Server, miniature, prefix: str) -> str:
    for name, data in miniature.content.items():
        server.files[f"/{prefix}/{name}.gz"] = gzip.compress(data)
    return f"{server.address}{prefix}/"


def cached() -> list[str]:
    return sorted(path.name for path in (cache_dir() / "mnist").iterdir())


def test_downloads_once_into_the_cache(server: Server, miniature, monkeypatch) -> None:
    monkeypatch.setenv("FASTNN_MIRRORS", offer(server, miniature, "good"))
    said: list[str] = []
    data = load_mnist(None, said.append, files=miniature.files)
    assert data.test_images.tobytes() == miniature.content["t10k-images-idx3-ubyte"][16:]
    assert len(server.asked) == 4
    assert cached() == sorted(miniature.content)
    load_mnist(None, said.append, files=miniature.files)
    assert len(server.asked) == 4
    assert said == []


@pytest.mark.parametrize("fault", ["dead", "404", "cut", "html", "wrong content"])
def test_continues_to_the_next_mirror(
    server: Server, dead_address: str, miniature, monkeypatch, fault: str
) -> None:
    bad, good = offer(server, miniature, "bad"), offer(server, miniature, "good")
    first = miniature.files[0].name
    path = f"/bad/{first}.gz"
    if fault == "dead":
        bad = dead_address
    elif fault == "404":
        del server.files[path]
    elif fault == "cut":
        server.cut.add(path)
    elif fault == "html":
        server.files[path] = b"<html>please log in</html>"
    else:
        content = miniature.content[first]
        server.files[path] = gzip.compress(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setenv("FASTNN_MIRRORS", f"{bad} {good}")
    assert load_mnist(None, lambda message: None, files=miniature.files).name == "mnist"
    assert server.asked.count(f"/good/{first}.gz") == 1
    assert cached() == sorted(miniature.content)


def test_a_bad_cached_file_is_fetched_again(server: Server, miniature, monkeypatch) -> None:
    cache = miniature.write(cache_dir() / "mnist", compressed=False)
    bad = miniature.files[1].name
    (cache / bad).write_bytes(b"half a fi")
    monkeypatch.setenv("FASTNN_MIRRORS", offer(server, miniature, "good"))
    said: list[str] = []
    load_mnist(None, said.append, files=miniature.files)
    assert server.asked == [f"/good/{bad}.gz"]
    assert "the cached copy is bad" in said[0]
    load_mnist(None, said.append, files=miniature.files)
    assert len(server.asked) == 1


def test_every_mirror_failing_is_reported_one_by_one(
    server: Server, dead_address: str, miniature, monkeypatch
) -> None:
    server.files[f"/bad/{miniature.files[0].name}.gz"] = b"<html>"
    monkeypatch.setenv("FASTNN_MIRRORS", f"{dead_address} {server.address}bad/ {server.address}none/")
    with pytest.raises(MnistUnavailableError) as error:
        load_mnist(None, lambda message: None, files=miniature.files)
    for expected in (dead_address, "Connection refused", "Not a gzipped file", "404"):
        assert expected in str(error.value)
    assert cached() == []


def test_a_file_that_is_not_the_expected_one_is_recognised_by_its_hash(
    server: Server, miniature, monkeypatch
) -> None:
    server.files[f"/{miniature.files[0].name}.gz"] = gzip.compress(b"another file")
    monkeypatch.setenv("FASTNN_MIRRORS", server.address)
    with pytest.raises(MnistUnavailableError, match=f"expected md5:{miniature.files[0].md5} but got"):
        load_mnist(None, lambda message: None, files=miniature.files)
    assert cached() == []


def test_without_pooch_there_are_the_digits(server: Server, monkeypatch) -> None:
    monkeypatch.setenv("FASTNN_MIRRORS", server.address)
    monkeypatch.setitem(sys.modules, "pooch", None)
    said: list[str] = []
    assert load(None, said.append).name == "digits"
    assert 'pip install "fastnn[train]"' in said[-1]
    assert server.asked == []


def test_an_unreachable_mirror_ends_in_the_digits(dead_address: str, monkeypatch) -> None:
    monkeypatch.setenv("FASTNN_MIRRORS", dead_address)
    said: list[str] = []
    assert load(None, said.append).name == "digits"
    assert "Connection refused" in said[-1]


@pytest.mark.parametrize(
    ("mirror", "told"),
    [("downloads", "not an address: unknown url type"), ("http://127.0.0.1:port/", "no HTTP response")],
)
def test_a_mirror_that_is_not_an_address_ends_in_the_digits(monkeypatch, mirror: str, told: str) -> None:
    monkeypatch.setenv("FASTNN_MIRRORS", mirror)
    said: list[str] = []
    assert load(None, said.append).name == "digits"
    assert told in said[-1]


def test_an_answer_that_is_not_http_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail.example.org ready\r\n")

        answering = threading.Thread(target=answer)
        answering.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/f"
        with pytest.raises(DataError, match="no HTTP response: BadStatusLine"):
            download(url, tmp_path / "f")
        answering.join()


def test_a_cache_that_cannot_be_written_ends_in_the_digits(
    tmp_path: Path, server: Server, monkeypatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTNN_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("FASTNN_MIRRORS", server.address)
    assert load(None, lambda message: None).name == "digits"


def test_an_answer_that_breaks_off_is_refused(tmp_path: Path, server: Server) -> None:
    server.files["/half"] = gzip.compress(bytes(range(256)))
    server.cut.add("/half")
    with pytest.raises(DataError, match="the response is truncated or damaged: Compressed file ended before"):
        download(f"{server.address}half", tmp_path / "f")


def test_an_answer_that_unpacks_without_end_is_refused(tmp_path: Path, server: Server) -> None:
    enough = 64 * gzip.compress(bytes(1 << 20))
    server.files["/enough"], server.files["/large"] = enough, enough + gzip.compress(b"x")
    download(f"{server.address}enough", tmp_path / "f")
    with pytest.raises(DataError, match="larger than the limit of 67108864 bytes"):
        download(f"{server.address}large", tmp_path / "f")


def test_a_trickling_answer_is_given_up(tmp_path: Path, server: Server) -> None:
    """Each byte arrives within the time for a piece, but they never end."""
    server.files["/slow"] = gzip.compress(b"")
    server.trickle.add("/slow")
    with pytest.raises(DataError, match=r"not complete after 0\.2 s"):
        download(f"{server.address}slow", tmp_path / "f", total_seconds=0.2)


def test_a_silent_server_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/f"
        with pytest.raises(OSError, match="timed out"):
            download(url, tmp_path / "f", stall_seconds=0.2)
