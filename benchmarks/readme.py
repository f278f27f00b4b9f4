"""The benchmark tables of README.md and docs/, and README's picture, out of the committed reports.

``python -m benchmarks.readme``, in the checkout, rewrites what is between each ``<!-- bench:NAME -->`` and
the ``<!-- /bench -->`` after it, and draws the picture where its figures changed; with ``--check`` it changes
nothing and exits with 1 where they differ. A row whose case a report lacks is left out, and so is a table
without rows.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from . import headline, numerics
from .accuracy import shown
from .case import OURS
from .committed import ERRORS, NETWORKS, PROGRAMS, Reports, median, step
from .report import seconds
from .summary import Document

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path("docs", "headline.svg")

_OPENING = re.compile(r"<!-- bench:(.*?) -->")
_BLOCK = re.compile(r"(<!-- bench:([\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
_CRITICS = ("tanh 23-64-64-1, 256", "relu 23-256-256-1, 256")
_SIDES = {
    OURS: "`TrainStep`",
    "fastnn eager": "fastnn eager",
    "torch fused": "torch, fused Adam",
    "torch": "torch",
    "torch.compile": "`torch.compile`",
    "JAX": "JAX jit",
    "scikit-learn": "scikit-learn",
}
_EPOCH_SIDES = {
    OURS: "`epoch`",
    "fastnn TrainStep": "`TrainStep` in a loop",
    "torch fused": "torch, fused Adam",
    "torch": "torch",
    "torch.compile": "`torch.compile`",
    "JAX": "JAX",
}
_PROGRAM_SIDES = {
    OURS: "`fastnn.capture`",
    "torch": "torch",
    "torch.compile": "`torch.compile`",
    "JAX": "JAX jit",
}
# Report, op and shape of README's figures besides the training steps in its picture, with their labels.
_HEADLINES = {
    ("1thread", "epoch of 64 steps", "784-28-10, batch 64"): "`epoch`: a step of 784-28-10, batch 64",
    ("1thread-programs", "program", "PPO 64x64, batch 64"): "`capture`: PPO update, 64 x 64, batch 64",
    (
        "1thread-programs",
        "program",
        "DQN 4-120-84-2, batch 128",
    ): "`capture`: DQN update, 120 x 84, batch 128",
    ("1thread-programs", "program", "SAC 256x256, batch 256"): "`capture`: SAC update, 256 x 256, batch 256",
    (
        "1thread-programs",
        "program",
        "VAE 784-256-20, batch 128",
    ): "`capture`: VAE update, 784-256-20, batch 128",
    ("1thread", "cross_entropy forward+backward", "512x32000"): "cross-entropy and gradient, 512 x 32000",
    ("1thread", "gram backward", "256x3136"): "Gram matrix, backward, 256 x 3136",
    ("1thread", "adam", "784-28-10 MLP, 4 tensors"): "Adam, the 4 parameters of 784-28-10",
    ("1thread", "linear + bias + relu forward", "1024x1024x1024"): "linear + bias + ReLU, 1024 x 1024 x 1024",
}
_HEADLINE_SIDES = {OURS: "fastnn", "torch": "torch", "torch.compile": "`torch.compile`", "JAX": "JAX jit"}
_BOTH = {"1thread": ", one thread", "2threads": ", two threads"}
_SMALL_MLP = "784-28-10 MLP, 4 tensors"
# Op, shape and dtype of a case, and its label in README.
_OPS = {
    ("linear + bias + relu forward", "64x128x784", "float32"): (
        "linear + bias + ReLU forward, 64 x 128 x 784 (M N K)"
    ),
    ("linear + bias + relu backward", "64x128x784", "float32"): "the same, backward",
    ("linear + bias + relu forward", "1024x1024x1024", "float32"): "linear + bias + ReLU forward, 1024^3",
    ("linear + bias + relu backward", "1024x1024x1024", "float32"): "the same, backward",
    ("linear + bias + relu forward", "512x512x512", "bfloat16"): (
        "linear + bias + ReLU forward, 512^3, bfloat16"
    ),
    ("relu forward", "1M", "float32"): "ReLU forward, 1M",
    ("relu forward", "16M", "float32"): "ReLU forward, 16M",
    ("cross_entropy forward+backward", "64x10", "float32"): "cross-entropy forward + backward, 64 x 10",
    ("cross_entropy forward+backward", "512x32000", "float32"): (
        "cross-entropy forward + backward, 512 x 32000"
    ),
    ("linear_cross_entropy forward+backward", "64x128x10", "float32"): (
        "linear + cross-entropy in one, 64 x 128 x 10 (N K C)"
    ),
    ("linear_cross_entropy forward+backward", "1024x768x32000", "float32"): (
        "linear + cross-entropy in one, 1024 x 768 x 32000"
    ),
    ("gram forward", "64x12544", "float32"): "Gram matrix, 64 x 12544",
    ("gram backward", "64x12544", "float32"): "the same, backward",
    ("gram forward", "256x3136", "float32"): "Gram matrix, 256 x 3136",
    ("gram backward", "256x3136", "float32"): "the same, backward",
    ("adam", _SMALL_MLP, "float32"): "Adam, 4 parameters of a 784-28-10 network",
    ("adam", "10M, 100 tensors", "float32"): "Adam, 10M parameters in 100 tensors",
    ("sgd", _SMALL_MLP, "float32"): "SGD with momentum, the 4 parameters",
    ("clip_grad_norm", _SMALL_MLP, "float32"): "gradient clipping by norm, the 4 parameters",
}

Cells = Sequence[str]


def _table(headers: Cells, rows: Sequence[Cells], left: int = 1) -> str:
    """Rows as markdown, `left` columns of them aligned to the left; nothing without rows."""
    if not rows:
        return ""
    marks = ["---"] * left + ["---:"] * (len(headers) - left)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (headers, marks, *rows))


def _ratio(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if value >= 10 else f"{value:.2f}"


def _times(result: Document, sides: Iterable[str], steps: int = 1) -> list[str]:
    """Seconds of one of the steps by each side; nothing for one that did not take part."""
    return [seconds(median(result, side) / steps) if side in result["times"] else "" for side in sides]


def _steps(
    reports: Reports,
    names: Mapping[str, str],
    op: str,
    networks: Sequence[str],
    sides: Mapping[str, str],
    steps: int = 1,
) -> str:
    """Seconds of one step: a row for each network and report, a column for each side that took part.

    `names` has, by report, the text of its rows after the network.
    """
    found = {
        network + said: result
        for name, said in names.items()
        for network in networks
        if (result := step(reports, name, op, network))
    }
    present = [side for side in sides if any(side in result["times"] for result in found.values())]
    rows = [[row, *_times(result, present, steps)] for row, result in found.items()]
    return _table(["network, batch", *(sides[side] for side in present)], rows)


def _headlines(reports: Reports) -> str:
    """Seconds of README's figures, and how many times as fast as torch that is."""
    rows = []
    for (name, op, shape), said in _HEADLINES.items():
        if result := reports.results(name).get((op, shape, "float32")):
            steps = 64 if op.startswith("epoch of 64") else 1
            times = _times(result, _HEADLINE_SIDES, steps)
            rows.append([said, *times, _ratio(result["speedups"]["torch"]["median"])])
    return _table(["one thread, float32", *_HEADLINE_SIDES.values(), "speed-up over torch"], rows)


def _programs(reports: Reports) -> str:
    """Seconds of one update, and how many times as fast as torch that is."""
    rows = [
        [shape, *_times(result, _PROGRAM_SIDES), _ratio(result["speedups"]["torch"]["median"])]
        for (_, shape, _), result in reports.results("1thread-programs", PROGRAMS).items()
    ]
    return _table(["update", *_PROGRAM_SIDES.values(), "speed-up over torch"], rows)


def _floors(reports: Reports) -> str:
    """The arithmetic of a step at the peak of one thread, and the time of the step."""
    peaks = reports.document("1thread").get("peaks", ())
    found = {network: step(reports, "1thread", "training step", network) for network in NETWORKS}
    rows = [
        [network, seconds(result["flops"] / peaks[0]["fma_float32"]), *_times(result, (OURS, "torch"))]
        for network, result in found.items()
        if result is not None and peaks
    ]
    return _table(["network, batch", "products at the peak", "`TrainStep`", "torch"], rows)


def _speedup(result: Document | None) -> str:
    """Over torch, and over its fused optimizer where there is one."""
    if result is None:
        return ""
    over = [
        result["speedups"][peer]["median"] for peer in ("torch", "torch fused") if peer in result["speedups"]
    ]
    return " / ".join(map(_ratio, over))


def _ops(reports: Reports) -> str:
    one, two = reports.results("1thread"), reports.results("2threads")
    rows = [
        [name, seconds(median(one[case], OURS)), _speedup(one[case]), _speedup(two.get(case))]
        for case, name in _OPS.items()
        if case in one
    ]
    return _table(["work", "fastnn, one thread", "speed-up, one thread", "speed-up, two threads"], rows)


def _memory(reports: Reports) -> str:
    def size(memory: Mapping[str, int]) -> list[str]:
        peak = memory["peak"]
        return [f"{value / (1 << 20):.0f} MB" for value in (peak, peak - memory["gradients"])]

    rows = [
        [
            f"{each['shape'].replace('x', ' x ')}, {each['dtype']}",
            *size(each["sides"][OURS]),
            *size(each["sides"]["torch"]),
        ]
        for each in reports.document("1thread").get("memory", ())
    ]
    headers = ["linear + cross-entropy in one", "fastnn, peak", "without gradients"]
    return _table([*headers, "torch, peak", "without gradients"], rows)


def _accuracy(reports: Reports) -> str:
    sides = reports.document("2threads-accuracy").get("sides", {})
    columns = {side: _SIDES[side] for side in (OURS, "fastnn eager", "torch fused") if side in sides}
    row = [shown(sides[side]["median_to_target"]) for side in columns]
    return _table(list(columns.values()), [row] if row else [], left=0)


def _numerics(reports: Reports) -> str:
    document = reports.document("1thread-numerics", ERRORS)
    if not document:
        return ""
    machine, torch = document["machine"], document["versions"]["torch"].partition("+")[0]
    return _headed(
        f"{machine['cpu']}, {machine['isa']}, torch {torch}:",
        _table(numerics.HEADERS, numerics.rows(document)),
    )


def _web(reports: Reports) -> str:
    """Seconds of a step in a browser, and how many times as fast fastnn is."""
    columns = {
        OURS: "fastnn",
        "TensorFlow.js wasm": "TensorFlow.js, wasm",
        "TensorFlow.js cpu": "TensorFlow.js, cpu",
    }
    rows = []
    for (_, shape, _), result in reports.results("web").items():
        speedups = {name: f", {_ratio(each['median'])} times" for name, each in result["speedups"].items()}
        rows.append(
            [
                shape.replace(", batch", ","),
                *(seconds(median(result, side)) + speedups.get(side, "") for side in columns),
            ]
        )
    return _table(["network, batch", *columns.values()], rows)


def _headed(text: str, table: str) -> str:
    return f"{text}\n\n{table}" if table else ""


_CRITIC_TEXT = (
    "An update of a critic, as in off-policy reinforcement learning (mean squared error, Adam with eps 1e-5, "
    "gradients\nclipped to a norm of 0.5; observation and action joined beforehand, for all sides):"
)

TABLES: dict[str, Callable[[Reports], str]] = {
    "headlines": _headlines,
    "step-1thread": lambda reports: _steps(reports, {"1thread": ""}, "training step", NETWORKS, _SIDES),
    "step-2threads": lambda reports: _steps(reports, {"2threads": ""}, "training step", NETWORKS, _SIDES),
    "epoch": lambda reports: _steps(
        reports, {"1thread": ""}, "epoch of 64 steps", NETWORKS, _EPOCH_SIDES, 64
    ),
    "critic": lambda reports: _headed(_CRITIC_TEXT, _steps(reports, _BOTH, "critic step", _CRITICS, _SIDES)),
    "accuracy": _accuracy,
    "floors": _floors,
    "programs": _programs,
    "numerics": _numerics,
    "web": _web,
    "ops": _ops,
    "memory": lambda reports: _headed(
        "Peak memory of a forward and backward beyond what it starts with, in all and without the gradients:",
        _memory(reports),
    ),
}


def rewritten(text: str, reports: Reports, name: str) -> str:
    """The `text` of the file `name` with the tables of `reports` between its markers.

    Raises:
        ValueError: a marker names no table or is not closed.
    """
    found = [block[2] for block in _BLOCK.finditer(text)]
    if found != _OPENING.findall(text) or not set(found) <= set(TABLES):
        raise ValueError(f"{name}: expected closed markers of {', '.join(TABLES)}; found {found}")
    return _BLOCK.sub(lambda block: block[1] + TABLES[block[2]](reports) + block[3], text)


def pages(root: Path = ROOT) -> list[Path]:
    """The files that may have markers."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Rewrite tables and picture, or with ``--check`` tell whether that would change them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where they differ")
    options = parser.parse_args(arguments)
    reports = Reports(root / "benchmarks" / "results")
    differing = []
    for path in pages(root):
        name = path.relative_to(root).as_posix()
        before = path.read_text(encoding="utf-8")
        after = rewritten(before, reports, name)
        if before != after:
            differing.append(name)
            if not options.check:
                path.write_text(after, encoding="utf-8")
    if headline.outdated(root / PICTURE, reports):
        differing.append(PICTURE.as_posix())
        if not options.check:
            headline.draw(root / PICTURE, reports)
    if options.check and differing:
        names = ", ".join(differing)
        print(f"{names} differ from benchmarks/results: run python -m benchmarks.readme", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
