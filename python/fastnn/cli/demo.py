"""``fastnn demo``: the page of web/, which trains in a browser tab, served on this machine."""

from __future__ import annotations

import argparse
import errno
import webbrowser
from pathlib import Path

import fastnn
from fastnn.cli.errors import CliError, warn

HELP = "train in a browser tab: serves the page that `make web` builds"

HOST = "127.0.0.1"
_PORT = 8000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastnn demo`."""
    parser.add_argument(
        "--port",
        type=_port,
        default=_PORT,
        metavar="N",
        help=f"port to listen on (default {_PORT}; 0: any free one)",
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="print the address, and do not open a browser"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where the MNIST files are (default: $FASTNN_DATA_DIR, else the cache, else a download, else "
        "the page's own 8x8 digits)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C.

    Raises:
        CliError: the page has not been built, the data is bad, or the port is taken.
    """
    from fastnn.cli.demo_server import Server

    page = find_page()
    mnist = _mnist(args.data_dir)
    try:
        server = Server((HOST, args.port), page, mnist)
    except OSError as error:
        taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        reason = (
            "is taken or not allowed; choose another with --port" if taken else f"cannot be used: {error}"
        )
        raise CliError(f"port {args.port} {reason}") from None
    with server:
        address = f"http://{HOST}:{server.server_address[1]}/"
        print(f"data     {f'MNIST, from {mnist}' if mnist else 'scikit-learn 8x8 digits; not MNIST'}")
        print(f"page     {address}  (Ctrl-C ends it)", flush=True)
        if not args.no_browser:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def find_page() -> Path:
    """The folder with the page: where `make web` was run, next to the sources, or in the installed package.

    The package's is the oldest: `make demo` builds a newer one in the checkout that it serves.

    Raises:
        CliError: it is in none of them.
    """
    package = Path(fastnn.__file__).resolve().parent
    built = Path("web/dist")
    for folder in (Path.cwd() / built, package.parents[1] / built, package / "web"):
        if all((folder / name).is_file() for name in ("index.html", "fastnn.wasm")):  # no other project's
            return folder
    raise CliError(
        "the page is not part of this installation: run `make web` and then `fastnn demo` in a checkout of "
        "fastnn; a wheel built after that includes the page"
    )


def _mnist(data_dir: Path | None) -> Path | None:
    """The folder of MNIST as `fastnn train` finds it, or None."""
    from fastnn.data import DataError
    from fastnn.data.mnist import MnistUnavailableError, load_mnist

    try:
        return Path(load_mnist(data_dir, warn).source)
    except MnistUnavailableError as error:
        warn(
            "MNIST is not available; set FASTNN_DATA_DIR or --data-dir to train on it. "
            f"What was tried: {error}"
        )
        return None
    except DataError as error:
        raise CliError(str(error)) from None
    except OSError as error:
        raise CliError(f"cannot read the data: {error}") from None


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)
