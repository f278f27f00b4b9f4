"""What nvcc made of each CUDA kernel: registers, spills, widths of accesses, instructions.

``python -m benchmarks.sass fastnn/_cuda*.so`` compares the kernels of a compiled module with the committed
table and exits with 1 where one got worse, or is not in the table; with ``--write`` it rewrites the table.
Counts may grow by a small share; spills, shared memory and accesses of 128 bits must stay. Code of another
nvcc than the table's is not compared. Cubins can be given instead (``nvcc -cubin -arch=sm_90``): of what they
lack nothing is said. It needs NVIDIA's cuobjdump and nvdisasm, which ``pip install "fastnn[sass]"`` brings,
c++filt of the binutils, and no GPU.

Of the products it also counts what a warp issues for one slice of K. Their main loop is the innermost one
with the most multiply-adds; the way through it that is counted is the one that whole slices in whole packs
take: with the most multiply-adds and copies of 16 bytes, and the fewest instructions besides.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("results") / "sass-sm80-sm90.md"

_PACKAGES = {"cuobjdump": "nvidia-cuda-cuobjdump", "nvdisasm": "nvidia-cuda-nvdisasm"}
_LOOP = ("products", "reads", "copies", "integer", "floating", "other", "in all")
_CODE = ("registers", "stack", "shared", "instructions", "float64")
_WIDTHS = ("loads 128", "other loads", "stores 128", "other stores")
_BETTER_IF_MORE = ("loads 128", "stores 128")
# The share by which other counts may be worse: the effect of reordering the same work.
_MUST_STAY = ("stack", "shared", *_BETTER_IF_MORE)
_SHARE = 0.02

_IS_PRODUCT = re.compile(r"(tensor|plain)_product<")
_PRODUCT = re.compile(r"HMMA|FFMA|DFMA")
_WIDE_COPY = re.compile(r"LDGSTS.*\.128")
_KINDS = {
    "products": _PRODUCT,
    "reads": re.compile(r"LDS(M|\b|\.)"),
    "copies": re.compile(r"LDGSTS"),
    "integer": re.compile(
        r"[UV]?(IMAD|IADD|IABS|LEA|SHF|LOP|PLOP|ISETP|IMNMX|SEL|MOV|PRMT|P2R|R2P|R2UR|S2R|S2UR|LDC|CS2R)"
    ),
    "floating": re.compile(r"[FD](ADD|MUL|SETP|MNMX|SEL)|MUFU|F2F|I2F|F2I"),
}
_FLOAT64 = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX)|MUFU\.\w*64H|F2F\.F(64|32\.F64)|I2F\.F64|F2I\.\w*F64")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?(\S.*?)\s*;")
_TARGET = re.compile(r"0x([0-9a-f]+)$")

Row = dict[str, int]
Key = tuple[str, str]  # kernel, architecture


class Instruction(NamedTuple):
    address: int
    predicated: bool
    text: str

    @property
    def branch(self) -> int | None:
        """The address at which execution may continue."""
        found = _TARGET.search(self.text) if self.text.startswith("BRA") else None
        return int(found[1], 16) if found else None

    @property
    def ends(self) -> bool:
        """Execution does not fall through: a branch that is always taken, or the end."""
        name, *rest = self.text.split()
        always = not self.predicated and not (rest and re.match(r"!?U?P\d", rest[0]))
        return always and name.split(".")[0] in ("BRA", "EXIT", "RET", "BRX", "JMP")


def tool(name: str) -> str:
    """Where one of NVIDIA's programs is: on the path, or in its package; exits if it is not found."""
    found = shutil.which(name)
    if found:
        return found
    try:
        files = importlib.metadata.files(_PACKAGES[name]) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name:
            return str(file.locate())
    raise SystemExit(f'{name} is not here: pip install "fastnn[sass]"')


def _run(*command: str, text: str | None = None, folder: str | None = None) -> str:
    # cuobjdump looks for nvdisasm on the path.
    path = os.pathsep.join([str(Path(tool("nvdisasm")).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(
        command, input=text, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def read_instructions(listing: str) -> list[Instruction]:
    """The instructions of one function, as ``cuobjdump -sass`` lists them."""
    found = [
        Instruction(int(address, 16), bool(predicate), text)
        for address, predicate, text in _INSTRUCTION.findall(listing)
    ]
    # The end is followed by a branch to itself and NOPs, up to a multiple of 128 bytes.
    while found and (found[-1].text == "NOP" or found[-1].branch == found[-1].address):
        found.pop()
    return found


def main_loop(code: Sequence[Instruction]) -> list[Instruction]:
    """The instructions of one pass through the loop with the most multiply-adds; empty without one."""
    best: tuple[int, int] = (0, 0)
    body: Sequence[Instruction] = ()
    at = {instruction.address: i for i, instruction in enumerate(code)}
    for end, instruction in enumerate(code):
        begin = at.get(instruction.branch if instruction.branch is not None else -1, len(code))
        if begin >= end:
            continue
        inside = code[begin : end + 1]
        score = sum(bool(_PRODUCT.match(i.text)) for i in inside), -len(inside)
        if score > best:
            best, body = score, inside
    return _way_through(body)


def _way_through(body: Sequence[Instruction]) -> list[Instruction]:
    """The path from the first to the last, forward only: the most work, then the fewest instructions."""
    at = {instruction.address: i for i, instruction in enumerate(body)}
    worst = (-1, 0)
    scores, before = [worst] * len(body), [-1] * len(body)
    for i, instruction in enumerate(body):
        work = bool(_PRODUCT.match(instruction.text) or _WIDE_COPY.match(instruction.text))
        come = scores[i] if i else (0, 0)
        if come == worst:
            continue
        scores[i] = come[0] + work, come[1] - 1
        target = at.get(instruction.branch if instruction.branch is not None else -1, -1)
        for follower in (target, -1 if instruction.ends else i + 1):
            if i < follower < len(body) and scores[i] > scores[follower]:
                scores[follower], before[follower] = scores[i], i
    way, i = [], len(body) - 1
    while i >= 0 and scores[i] != worst:
        way.append(body[i])
        i = before[i]
    return way[::-1]


def _loop_row(code: Sequence[Instruction]) -> Row:
    loop = main_loop(code)
    row = dict.fromkeys(_LOOP, 0)
    for instruction in loop:
        kind = next((name for name, form in _KINDS.items() if form.match(instruction.text)), "other")
        row[kind] += 1
    return {**row, "in all": len(loop)}


def _width_row(code: Sequence[Instruction]) -> Row:
    """Accesses to device memory in the text of the kernel, however often each runs."""
    row = dict.fromkeys(_WIDTHS, 0)
    for instruction in code:
        name = instruction.text.split()[0]
        wide = ".128" in name
        if name.startswith(("LDG.", "LDGSTS")):
            row["loads 128" if wide else "other loads"] += 1
        elif name.startswith("STG"):
            row["stores 128" if wide else "other stores"] += 1
    return row


def plain_name(demangled: str) -> str:
    """The name as in the sources, without return type, parameters and fastnn's namespaces."""
    name = re.sub(r"fastnn::|cuda::|\(anonymous namespace\)::|^void ", "", demangled)
    name = re.sub(r"\((\w+)\)(\d+)", r"\1 \2", name)  # (Mma)0
    return name.split("(")[0].replace("> >", ">>")


def _of_cubin(cubin: Path) -> Iterator[tuple[Key, Row]]:
    resources = _run(tool("cuobjdump"), "-res-usage", str(cubin))
    used = {
        name: {"registers": int(registers), "stack": int(stack), "shared": int(shared)}
        for name, registers, stack, shared in re.findall(
            r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", resources
        )
    }
    listing = _run(tool("cuobjdump"), "-sass", str(cubin))
    arch = re.search(r"code for (sm_\w+)", listing)
    functions = [part.split("\n", 1) for part in listing.split("Function : ")[1:]]
    if not arch or not functions:
        return
    names = _run("c++filt", text="".join(f"{f[0]}\n" for f in functions)).splitlines()
    for name, (mangled, text) in zip(map(plain_name, names), functions, strict=True):
        code = read_instructions(text)
        if mangled not in used:  # a device function called by kernels
            continue
        float64 = sum(bool(_FLOAT64.match(i.text)) for i in code)
        row = {**used[mangled], "instructions": len(code), "float64": float64}
        yield (name, arch[1]), {**row, **(_loop_row(code) if _IS_PRODUCT.match(name) else _width_row(code))}


def measure(files: Sequence[Path]) -> tuple[str, dict[Key, Row]]:
    """nvcc's version, and the kernels of the files."""
    rows: dict[Key, Row] = {}
    versions: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            cubins = [file]
            if file.suffix != ".cubin":
                # cuobjdump extracts to where it runs.
                _run(tool("cuobjdump"), "-xelf", "all", str(file.resolve()), folder=folder)
                cubins = sorted(Path(folder).glob("*.cubin"))
            for cubin in cubins:
                versions.update(
                    re.findall(r"release [\d.]+, V([\d.]+)", cubin.read_bytes().decode("latin-1"))
                )
                rows.update(_of_cubin(cubin))
    return " and ".join(sorted(versions)), rows


def _table(rows: dict[Key, Row], columns: Sequence[str]) -> str:
    lines = [f"| kernel | for | {' | '.join(columns)} |", "| --- | --- |" + " ---: |" * len(columns)]
    for (name, arch), row in sorted(rows.items()):
        lines.append(f"| `{name}` | {arch} | {' | '.join(str(row[column]) for column in columns)} |")
    return "\n".join(lines) + "\n"


def render(version: str, rows: dict[Key, Row]) -> str:
    """The committed page."""
    products = {key: row for key, row in rows.items() if "in all" in row}
    others = {key: row for key, row in rows.items() if "in all" not in row}
    return f"""# Machine code of the CUDA kernels

Made by `python -m benchmarks.sass --write` from code of nvcc {version}; nothing here was measured on a GPU.
Stack is bytes of a thread, for what found no register and for calls; float64 is instructions.

## Products

From "products" on: what a warp issues for one slice of K, in whole slices and packs.

{_table(products, [*_CODE, *_LOOP])}
## All others

Loads and stores of device memory in the text of the kernel: of 128 bits, and of fewer.

{_table(others, [*_CODE, *_WIDTHS])}"""


def read_table(page: str) -> tuple[str, dict[Key, Row]]:
    """What `render` wrote."""
    version = re.search(r"code of nvcc (\S+);", page)
    rows: dict[Key, Row] = {}
    columns: list[str] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| kernel |"):
            columns = list(_CODE) + list(_LOOP if "products" in cells else _WIDTHS)
        elif line.startswith("| `"):
            name, arch, *numbers = cells
            rows[name.strip("`"), arch] = dict(zip(columns, map(int, numbers), strict=True))
    return version[1] if version else "", rows


def differences(was: dict[Key, Row], now: dict[Key, Row], complete: bool) -> tuple[list[str], list[str]]:
    """What got worse than the table, and what better. In a complete module a missing kernel is also worse."""
    worse: list[str] = []
    better: list[str] = []
    archs = {arch for _, arch in now}
    for key in sorted({*was, *now}):
        said = f"{key[0]} for {key[1]}"
        if key not in was:
            worse.append(f"{said}: not in the table")
        elif key not in now:
            if complete and key[1] in archs:
                worse.append(f"{said}: not in the module any more")
        else:
            for column, before in was[key].items():
                after = now[key][column]
                change = before - after if column in _BETTER_IF_MORE else after - before
                if abs(change) > (0 if column in _MUST_STAY else _SHARE * before):
                    (worse if change > 0 else better).append(f"{said}: {column} {before} -> {after}")
    return worse, better


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sass", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="fastnn/_cuda*.so, or cubins")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    parser.add_argument("--table", type=Path, default=TABLE, help="another table than the committed one")
    arguments = parser.parse_args(argv)
    version, now = measure(arguments.files)
    if not now:
        raise SystemExit("no kernels in these files")
    if arguments.write:
        arguments.table.write_text(render(version, now), encoding="utf-8")
        return 0
    table_version, was = read_table(arguments.table.read_text(encoding="utf-8"))
    if version != table_version:
        print(
            f"skipped: {len(now)} kernels of nvcc {version}, but {arguments.table.name} is of nvcc "
            f"{table_version}, whose code is another"
        )
        return 0
    worse, better = differences(was, now, all(file.suffix != ".cubin" for file in arguments.files))
    print(f"{len(now)} kernels of nvcc {version}")
    for title, lines in (("worse", worse), ("better", better)):
        if lines:
            print(f"{title}:", *lines, sep="\n  ")
    if worse:
        print("where that is meant: python -m benchmarks.sass --write FILES, and commit the table")
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
