"""``fastnn demo``: what it serves, and what it says if it cannot."""

from __future__ import annotations

import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastnn.cli import demo
from fastnn.cli.demo_server import Server
from fastnn.cli.main import main


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page that `make web` might have left, in the current folder."""
    folder = tmp_path / "web" / "dist"
    folder.mkdir(parents=True)
    for name in ("index.html", "main.js", "fastnn.wasm", "style.css"):
        (folder / name).write_text(name)
    monkeypatch.setattr(demo.fastnn, "__file__", str(tmp_path / "no" / "checkout" / "fastnn" / "__init__.py"))
    return folder


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A folder with the four files, two of them compressed, as far as a server can tell."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(f"images of {part}".encode())
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(f"labels of {part}".encode())
    return folder


@contextmanager
def running(page: Path, mnist: Path | None = None) -> Iterator[str]:
    with Server((demo.HOST, 0), page, mnist) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://{demo.HOST}:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("", "text/html"),
        ("main.js", "text/javascript"),
        ("fastnn.wasm", "application/wasm"),
        ("style.css", "text/css"),
    ],
)
def test_serves_files_as_what_they_are(name: str, kind: str, page: Path) -> None:
    with running(page) as address, urllib.request.urlopen(address + name) as answer:
        assert answer.headers["Content-Type"] == kind
        assert answer.headers["Cache-Control"] == "no-cache"
        assert answer.read().decode() == (name or "index.html")


@pytest.mark.parametrize(
    "path", ["nothing", "../../secret", "%2e%2e/%2e%2e/secret", "data/mnist/train-images-idx3-ubyte.gz"]
)
def test_serves_nothing_else(path: str, page: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with running(page) as address, pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(address + path)
    assert error.value.code == 404
    error.value.close()


def test_serves_mnist_compressed_or_not_under_the_same_name(page: Path, mnist: Path) -> None:
    with running(page, mnist) as address:
        for part in ("train", "t10k"):
            for kind in ("images-idx3", "labels-idx1"):
                with urllib.request.urlopen(f"{address}data/mnist/{part}-{kind}-ubyte.gz") as answer:
                    assert answer.headers["Content-Type"] == "application/octet-stream"
                    assert answer.headers["Content-Encoding"] is None
                    assert answer.read().decode() == f"{kind[:6]} of {part}"


def test_a_browser_that_goes_away_is_not_reported(page: Path, mnist: Path, capsys) -> None:
    (mnist / "train-images-idx3-ubyte").write_bytes(bytes(20_000 * 784))
    with Server((demo.HOST, 0), page, mnist) as server:
        server.daemon_threads = False  # shutting down waits for the response
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with socket.create_connection(server.server_address) as browser:
            browser.sendall(b"GET /data/mnist/train-images-idx3-ubyte.gz HTTP/1.0\r\n\r\n")
            browser.recv(1)
            abruptly = struct.pack("ii", 1, 0)
            browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, abruptly)
        server.shutdown()
        thread.join()
    assert capsys.readouterr().err == ""


def test_without_a_page_it_says_how_to_build_one(page: Path, capsys) -> None:
    (page / "index.html").unlink()
    assert main(["demo", "--no-browser"]) == 1
    assert "run `make web` and then `fastnn demo` in a checkout" in capsys.readouterr().err


def test_the_page_that_was_built_here_comes_before_the_packages(page: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "no" / "checkout" / "fastnn" / "web", tmp_path / "no" / "web" / "dist", page]
    shutil.copytree(page, tmp_path / "built")
    shutil.rmtree(page)
    for folder in folders:
        shutil.copytree(tmp_path / "built", folder)
        assert demo.find_page() == folder


def test_a_page_of_another_project_is_not_served(page: Path, tmp_path: Path) -> None:
    package = tmp_path / "no" / "checkout" / "fastnn" / "web"
    shutil.copytree(page, package)
    (page / "fastnn.wasm").unlink()
    assert demo.find_page() == package


def test_a_port_that_is_taken_is_named(page: Path, capsys) -> None:
    with socket.socket() as taken:
        taken.bind((demo.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", "--no-browser", "--port", str(port)]) == 1
    assert f"port {port} is taken or not allowed; choose another with --port" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_is_a_number(port: str, capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["demo", "--port", port])
    assert exit.value.code == 2
    assert "expected a port from 0 to 65535" in capsys.readouterr().err


def test_bad_data_is_named(page: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["demo", "--no-browser", "--data-dir", "empty"]) == 1
    assert "expected the MNIST files" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "opened"), [([], True), (["--no-browser"], False)])
def test_opens_a_browser_unless_told_not_to(
    option: list[str], opened: bool, page: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    addresses: list[str] = []
    monkeypatch.setattr(demo.webbrowser, "open", addresses.append)

    def interrupted(self: Server) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    assert main(["demo", "--port", "0", *option]) == 0
    out, err = capsys.readouterr()
    assert "data     scikit-learn 8x8 digits; not MNIST\n" in out
    assert "MNIST is not available" in err
    assert [address in out for address in addresses] == [True] * opened


def test_ctrl_c_ends_it_quietly(page: Path, tmp_path: Path) -> None:
    program = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
import fastnn
fastnn.__file__ = {str(tmp_path / "no" / "checkout" / "fastnn" / "__init__.py")!r}
from fastnn.cli.main import main
raise SystemExit(main(["demo", "--port", "0", "--no-browser"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("data     ")
    address = process.stdout.readline().split()[1]
    with urllib.request.urlopen(address) as answer:
        assert answer.read() == b"index.html"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
