"""What the compiled modules are linked with: nothing from torch, and one copy of a kernel for each
variant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fastnn import _dispatch

elffile = pytest.importorskip("elftools.elf.elffile")

pytestmark = pytest.mark.skipif(
    _dispatch.cpu is None or not Path(_dispatch.cpu.__file__).read_bytes().startswith(b"\x7fELF"),
    reason="needs the compiled module, as ELF",
)


MODULES = [m for m in (_dispatch.cpu, _dispatch.load_cuda()[0]) if m is not None]


@pytest.fixture(scope="module", params=MODULES, ids=lambda m: m.__name__)
def module(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def elf(module: Any):  # type: ignore[no-untyped-def]
    with open(module.__file__, "rb") as stream:
        yield elffile.ELFFile(stream)


def test_needs_only_the_system_libraries(elf) -> None:  # type: ignore[no-untyped-def]
    needed = {tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")}
    allowed = re.compile(r"(libc|libm|libpthread|libdl|librt|libgcc_s|libstdc\+\+|libgomp|ld-linux.*)\.so")
    assert {name for name in needed if not allowed.match(name)} == set()


def test_no_undefined_symbol_is_from_torch(elf) -> None:  # type: ignore[no-untyped-def]
    undefined = {
        s.name for s in elf.get_section_by_name(".dynsym").iter_symbols() if s["st_shndx"] == "SHN_UNDEF"
    }
    assert any(name.startswith("Py") for name in undefined)
    foreign = re.compile(r"^_ZN?K?(2at|3c10|5torch|6caffe2)|^(at|c10|torch|aoti)_|THP")
    assert {name for name in undefined if foreign.search(name)} == set()


def test_exports_no_function_but_its_entry_point(elf, module: Any) -> None:  # type: ignore[no-untyped-def]
    exported = {
        s.name
        for s in elf.get_section_by_name(".dynsym").iter_symbols()
        if s["st_shndx"] != "SHN_UNDEF" and s["st_info"]["type"] in ("STT_FUNC", "STT_GNU_IFUNC")
    }
    assert exported == {f"PyInit_{module.__name__.rpartition('.')[2]}"}


def test_variants_share_no_function() -> None:
    """The linker keeps one copy of a weak function: if it were an AVX-512 one, older processors would
    crash."""
    root = Path(__file__).parents[1] / "build"
    shared = []
    objects = list(root.glob("*/CMakeFiles/fastnn_*.dir/**/*.o"))
    if not objects:
        pytest.skip("the object files of the build are not here")
    for path in objects:
        variant = next(part for part in path.parts if part.startswith("fastnn_") and part.endswith(".dir"))
        isa = variant.removeprefix("fastnn_").removesuffix(".dir")
        own_namespace = f"{len(isa)}{isa}"
        with path.open("rb") as stream:
            for symbol in elffile.ELFFile(stream).get_section_by_name(".symtab").iter_symbols():
                mergeable = symbol["st_info"]["bind"] in ("STB_WEAK", "STB_LOOS")
                function = symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] != "SHN_UNDEF"
                if mergeable and function and own_namespace not in symbol.name:
                    shared.append(f"{path.name} ({isa}): {symbol.name}")
    assert shared == []
