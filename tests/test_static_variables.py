"""Python never runs while C++ has the lock for a static variable: `csrc/bindings/kept.h` says why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

BINDINGS = Path(__file__).parents[1] / "csrc" / "bindings"
# With an initialiser that calls something; in function declarations the parentheses come first.
MADE_WHEN_RUN = re.compile(
    r"^ *(?:thread_local )?static (?!constexpr)[^()=;{]*(?:=[^;]*|\{[^;]*)\([^;]*;", re.MULTILINE
)


def test_the_pattern() -> None:
    for bad in (
        '  static PyObject* const key = interned("lr");',
        "  static auto* callback =\n      new py::object();",
        'static const py::object torch{py::module_::import("torch")};',
        '  static PyObject* const keys[] = {interned("a"), interned("b")};',
    ):
        assert MADE_WHEN_RUN.search(bad), bad
    for good in (
        '  static Interned key("lr");',
        "  static constexpr auto held = [](PyObject* self) { return nullptr; };",
        '  static const std::pair<const char*, Kind> kinds[] = {{"same", Kind::same}};',
        "  static bool next(void* context) { return use(context); }",
        "  static int64_t count = 0;",
    ):
        assert not MADE_WHEN_RUN.search(good), good


@pytest.mark.skipif(not BINDINGS.exists(), reason="needs the checkout")
def test_static_variables_are_made_by_the_compiler() -> None:
    found = {
        f"{path.name}: {match[0].strip()}"
        for path in BINDINGS.rglob("*")
        if path.is_file()
        for match in MADE_WHEN_RUN.finditer(path.read_text(encoding="utf-8"))
    }
    assert found == set()
