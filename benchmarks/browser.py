"""A training step in a browser against TensorFlow.js, and the time to an accuracy on MNIST in the tab.

``python -m benchmarks.browser`` in a checkout after `make web`. One headless Chromium measures all sides in
rounds that alternate, each on one thread (a page without special headers has no more). TensorFlow.js comes
from npm into a folder that is deleted afterwards.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tabulate import tabulate

import fastnn
from fastnn.cli.demo import HOST, find_page
from fastnn.cli.demo_server import Server
from fastnn.cli.errors import CliError
from fastnn.data import DataError
from fastnn.data.mnist import load_mnist

from . import machine, summary
from .accuracy import median_time, shown
from .case import OURS
from .chromium import NoBrowserError, chromium, evaluate
from .report import seconds
from .runner import Quartiles
from .summary import Document

OP, SHAPE = "training step", "784-128-10, batch 64"
SIDES = (OURS, "TensorFlow.js wasm", "TensorFlow.js cpu")
TARGET, SEEDS, ROUNDS = 0.975, 5, 15
_PACKAGES = ("@tensorflow/tfjs@4.22.0", "@tensorflow/tfjs-backend-wasm@4.22.0")
_PATIENCE = 1800


@contextmanager
def _served() -> Iterator[str]:
    """The page with TensorFlow.js next to it, and MNIST if available."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(find_page(), folder, dirs_exist_ok=True)
        bench = folder / "bench"
        shutil.copytree(Path(__file__).with_name("browser_page"), bench)
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]
        subprocess.run([*install, name, *_PACKAGES], check=True)
        (folder / "node_modules").rename(bench / "npm")
        try:
            mnist = Path(load_mnist(None, lambda _: None).source)
        except (DataError, OSError):
            mnist = None
        with Server((HOST, 0), folder, mnist) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://{HOST}:{server.server_address[1]}/bench/index.html"
            finally:
                server.shutdown()
                thread.join()


def measure(rounds: int, seeds: int) -> Document:
    """Run everything; plain data for JSON.

    Raises:
        NoBrowserError: there is no browser to measure in.
        CliError: the page has not been built.
        RuntimeError: the sides do not train alike.
    """
    described = machine.describe()
    with _served() as address, chromium() as browser:
        browser.set_script_timeout(_PATIENCE)
        browser.get(address)
        steps = evaluate(browser, "return steps(args[0])", rounds)
        try:
            tests = [evaluate(browser, "return secondsTo(...args)", TARGET, seed) for seed in range(seeds)]
        except RuntimeError as error:
            print(f"left out: time to an accuracy, {error}", file=sys.stderr)
            tests = []
        version = browser.capabilities["browserVersion"]
    samples = {name: steps["samples"][name] for name in SIDES}
    to_target = [test and test["seconds"] for test in tests]
    return {
        "schema": 1,
        "machine": described,
        "versions": {"fastnn": fastnn.__version__, "Chromium": version, "TensorFlow.js": steps["tfjs"]},
        "settings": {
            "rounds": rounds,
            "seeds": seeds,
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        },
        "results": [
            {
                "op": OP,
                "shape": SHAPE,
                "dtype": "float32",
                "refused": None,
                "losses": steps["losses"],
                "times": {name: {"seconds": asdict(Quartiles.of(each))} for name, each in samples.items()},
                "speedups": {
                    name: asdict(Quartiles.of([t / o for t, o in zip(each, samples[OURS], strict=True)]))
                    for name, each in samples.items()
                    if name != OURS
                },
            }
        ],
        "accuracy": {"target": TARGET, "to_target": to_target, "median_to_target": median_time(to_target)}
        if tests
        else None,
    }


def to_markdown(document: Document) -> str:
    """The report as a page."""
    machine_of, versions, settings = (document[name] for name in ("machine", "versions", "settings"))
    result = document["results"][0]
    rows = []
    for name, times in result["times"].items():
        speedup = result["speedups"].get(name)
        quartiles = f"{speedup['q1']:.2f} - {speedup['q3']:.2f}" if speedup else ""
        ratio = f"{speedup['median']:.2f} x" if speedup else ""
        rows.append((name, seconds(times["seconds"]["median"]), ratio, quartiles))
    table = tabulate(
        rows,
        ("side", "a step", "fastnn's speed-up", "quartiles"),
        tablefmt="github",
        colalign=("left", "right", "right", "right"),
        disable_numparse=True,
    )
    lines = [
        "# fastnn in a browser tab",
        "",
        f"- {machine_of['cpu']}, {machine_of['cores']} cores; one thread, WebAssembly with SIMD128",
        f"- {', '.join(f'{name} {version}' for name, version in versions.items())}, headless",
        f"- {settings['rounds']} interleaved rounds in one tab, {settings['date']}, "
        f"load {machine_of['load_average']:.1f} at the start",
        "",
        f"{result['op'].capitalize()}, {result['shape']}, Adam, the batch in memory:",
        "",
        table,
        "",
        "speed-up: median over rounds of the peer's time / ours in the same round.",
    ]
    if accuracy := document["accuracy"]:
        lines += [
            "",
            f"MNIST to {accuracy['target']:.1%} test accuracy by the page's worker (784-128-10, batch 64, "
            "Adam 1e-3; seconds of training, tested twice an epoch): "
            f"median {shown(accuracy['median_to_target'])}, "
            f"seeds {', '.join(map(shown, accuracy['to_target']))}.",
        ]
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and, with ``--out``, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.browser", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, help=f"of the time to an accuracy, default {SEEDS}"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write NAME-web.md and NAME.json there")
    parser.add_argument("--name", help="default: a short name of the processor")
    options = parser.parse_args(arguments)
    try:
        document = measure(options.rounds, options.seeds)
    except (CliError, NoBrowserError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f"benchmarks.browser: error: {error}", file=sys.stderr)
        return 1
    print(to_markdown(document))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        name = options.name or machine.short_name()
        summary.add(options.out / f"{name}.json", {"web": document})
        (options.out / f"{name}-web.md").write_text(to_markdown(document), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
