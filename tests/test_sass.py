"""`benchmarks/sass.py`, which reads machine code: on listings that are written here, and on nvcc's."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

sass = pytest.importorskip("benchmarks.sass", reason="needs the checkout")


def _listing(*lines: str) -> str:
    """As cuobjdump writes it: each instruction with its address and its bits."""
    return "".join(
        f"        /*{16 * i:04x}*/                   {line} ;   /* 0x00000a00ff017b82 */\n"
        f"                                                     /* 0x000fe20000000800 */\n"
        for i, line in enumerate(lines)
    )


# A loop over K as nvcc writes it: the step over the copies where no slice is left, the copies of packs, those
# of single elements in a loop of their own, and the multiply-adds.
_PRODUCT = [
    "IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28]",
    "ISETP.GE.AND P0, PT, R3, R6, PT",  # 0x10, where the loop begins
    "@P0 BRA 0x90",
    "@P1 BRA 0x60",
    "LDGSTS.E.BYPASS.128.ZFILL [R25], desc[UR8][R14.64], P0",
    "BRA 0x90",
    "LDGSTS.E.32.ZFILL [R25], desc[UR8][R14.64], P0",  # 0x60
    "IADD3 R5, R5, 0x1, RZ",
    "@!P2 BRA 0x60",
    "LDSM.16.M88.4 R92, [R92]",  # 0x90
    "HMMA.16816.F32.BF16 R96, R92.reuse, R80, R40",
    "HMMA.16816.F32.BF16 R88, R92, R76, R32",
    "@!P4 BRA 0x10",
    "STG.E.128 desc[UR4][R2.64], R4",
    "EXIT",
    "BRA 0xf0",
    "NOP",
]


def test_the_padding_is_not_counted() -> None:
    code = sass.read_instructions(_listing(*_PRODUCT))
    assert [i.text for i in code][-1] == "EXIT"
    assert len(code) == 15


def test_the_way_of_whole_packs_through_the_loop() -> None:
    loop = sass.main_loop(sass.read_instructions(_listing(*_PRODUCT)))
    names = [i.text.split(".")[0].split()[0] for i in loop]
    assert names == ["ISETP", "BRA", "BRA", "LDGSTS", "BRA", "LDSM", "HMMA", "HMMA", "BRA"]


def test_the_loop_is_the_innermost_with_all_multiply_adds() -> None:
    lines = [
        "MOV R0, R1",
        "FFMA R1, R2, R3, R1",
        "FFMA R1, R2, R3, R1",
        "@P0 BRA 0x10",
        "@P1 BRA 0x0",
        "EXIT",
    ]
    assert len(sass.main_loop(sass.read_instructions(_listing(*lines)))) == 3


def test_nothing_is_counted_where_there_is_no_loop() -> None:
    assert sass.main_loop(sass.read_instructions(_listing("FFMA R1, R2, R3, R1", "EXIT"))) == []


def _rows(**changed: int) -> dict[tuple[str, str], dict[str, int]]:
    row = {"registers": 100, "stack": 0, "shared": 0, "instructions": 1000, "float64": 3}
    row |= {"loads 128": 4, "other loads": 0, "stores 128": 1, "other stores": 0}
    return {("relu<float>", "sm_90"): row | changed}


@pytest.mark.parametrize(
    ("column", "after", "worse", "better"),
    [
        ("registers", 102, False, False),
        ("registers", 103, True, False),
        ("registers", 97, False, True),
        ("stack", 4, True, False),
        ("shared", 16, True, False),
        ("instructions", 1020, False, False),
        ("instructions", 1021, True, False),
        ("float64", 4, True, False),
        ("other loads", 1, True, False),
        ("loads 128", 3, True, False),
        ("loads 128", 5, False, True),
    ],
)
def test_what_is_worse(column: str, after: int, worse: bool, better: bool) -> None:
    found = sass.differences(_rows(), _rows(**{column: after}), complete=True)
    assert tuple(map(bool, found)) == (worse, better)


def test_the_table_has_all_kernels_of_the_module_and_no_others() -> None:
    other = {("relu<double>", "sm_90"): _rows()["relu<float>", "sm_90"]}
    assert sass.differences(_rows(), {**_rows(), **other}, complete=False)[0]
    assert sass.differences({**_rows(), **other}, _rows(), complete=True)[0]
    assert not sass.differences({**_rows(), **other}, _rows(), complete=False)[0]
    elsewhere = {("relu<float>", "sm_80"): other["relu<double>", "sm_90"]}
    assert not sass.differences({**_rows(), **elsewhere}, _rows(), complete=True)[0]  # built for sm_90 alone


def test_the_page_is_read_as_it_was_written() -> None:
    product = {"registers": 128, "stack": 8, "shared": 0, "instructions": 5000, "float64": 0, "products": 32}
    product |= {"reads": 18, "copies": 4, "integer": 190, "floating": 0, "other": 20, "in all": 264}
    rows = {**_rows(), ("tensor_product<float, 128, Mma 2, true, true>", "sm_80"): product}
    assert sass.read_table(sass.render("13.0.88", rows)) == ("13.0.88", rows)


def test_code_of_another_nvcc_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.md"
    table.write_text(sass.render("13.0.88", _rows()))
    for version, status in (("13.0.88", 1), ("12.9.1", 0)):
        monkeypatch.setattr(sass, "measure", lambda files, version=version: (version, _rows(stack=8)))
        assert sass.main(["--table", str(table), "a.cubin"]) == status
    *worse, skipped = capsys.readouterr().out.splitlines()
    assert worse[:3] == ["1 kernels of nvcc 13.0.88", "worse:", "  relu<float> for sm_90: stack 0 -> 8"]
    assert skipped == (
        "skipped: 1 kernels of nvcc 12.9.1, but table.md is of nvcc 13.0.88, whose code is another"
    )


@pytest.mark.skipif(not sass.TABLE.exists(), reason="needs the checkout")
def test_the_committed_table_has_the_products() -> None:
    version, rows = sass.read_table(sass.TABLE.read_text(encoding="utf-8"))
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    loops = [row["products"] for (name, _), row in rows.items() if re.match(r"(tensor|plain)_product<", name)]
    assert loops
    assert all(loops)


def _tools_are_here() -> bool:
    try:
        return bool(sass.tool("cuobjdump") and sass.tool("nvdisasm") and shutil.which("nvcc"))
    except SystemExit:
        return False


@pytest.mark.skipif(not _tools_are_here(), reason="needs nvcc, cuobjdump and nvdisasm")
def test_a_kernel_that_got_worse_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def compiled(name: str, body: str) -> str:
        source, cubin = tmp_path / f"{name}.cu", tmp_path / f"{name}.cubin"
        source.write_text(f"namespace fastnn {{ __global__ void add(double* x, float* y) {{ {body} }} }}\n")
        subprocess.run(["nvcc", "-cubin", "-arch=sm_80", "-o", cubin, source], check=True)
        return str(cubin)

    table = tmp_path / "table.md"
    before = compiled("before", "y[0] += 1;")
    assert sass.main(["--write", "--table", str(table), before]) == 0
    assert sass.main(["--table", str(table), before]) == 0
    assert sass.main(["--table", str(table), compiled("after", "y[0] += sqrt(x[0]);")]) == 1
    assert re.search(r"add for sm_80: float64 0 -> \d+", capsys.readouterr().out)
