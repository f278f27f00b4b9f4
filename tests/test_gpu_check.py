"""`benchmarks/gpu_check.sh` without a GPU: its stages and runner of tests, with stand-ins for programs."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from fastnn import _dispatch

ROOT = Path(__file__).resolve().parents[1]
SUFFIX = ".cpython-399-x86_64-linux-gnu.so"

# Each appends its command line to $CALLS. The programs write what the real ones would.
PROGRAMS = {
    "python": f"""
case "$*" in
  *EXT_SUFFIX*) echo {SUFFIX} ;;
  *get_device_capability*) [ -n "$CAPABILITY" ] && echo "$CAPABILITY" ;;
  "-m fastnn selftest "*--json)
    echo "the table" >&2
    echo "{{}}"
    [ -z "$FAILS" ] ;;
  "-m benchmarks.gpu_tests "*) exec {sys.executable} "$@" ;;
  "-m benchmarks.gpu "*)
    while [ $# -gt 1 ]; do shift; done
    echo "{{}}" >"$1" ;;
esac
""",
    "cmake": f"""
if [ "$1" = --install ]; then
  for module in _cpu _cuda; do echo "$module" >"python/fastnn/$module{SUFFIX}"; done
fi
""",
    "nvcc": """
while [ "$1" != -o ]; do shift; done
printf '#!/bin/sh\\necho a barrier takes no time at all\\n' >"$2"
chmod +x "$2"
""",
    "compute-sanitizer": f"""
echo "========= COMPUTE-SANITIZER"
tool=$2
while [ "$1" != {sys.executable} ]; do shift; done
"$@" || exit
[ $tool = memcheck ] && echo "========= ERROR SUMMARY: 0 errors" && exit
echo "========= Error: a race between two threads"
exit 86
""",
}

CONFTEST = """
def pytest_addoption(parser):
    parser.addoption("--all", action="store_true")
"""

GOOD = """
import os
import pytest

@pytest.mark.cuda
def test_good():
    assert os.environ["FASTNN_CUDA_UNPROVEN"] == "1"

def test_without_a_gpu():
    raise AssertionError
"""


class Tree:
    """A checkout with the script and little else, and programs that a machine with a GPU has."""

    def __init__(self, root: Path) -> None:
        self.root, self.out, self._calls = root, root / "come back", root / "calls"
        for name in ("gpu_check.sh", "gpu_tests.py", "gpu_test_lines.py", "__init__.py"):
            self.write(f"benchmarks/{name}", (ROOT / "benchmarks" / name).read_text())
        (root / "benchmarks" / "gpu_check.sh").chmod(0o755)
        shutil.copy(ROOT / "pyproject.toml", root)
        for name in (
            "CMakeLists.txt",
            "cmake/cuda.cmake",
            "csrc/core/a header.h",
            "python/fastnn/__init__.py",
        ):
            self.write(name, "")
        self.write("conftest.py", CONFTEST)
        for name, text in PROGRAMS.items():
            path = self.write(f"bin/{name}", f'#!/bin/sh\necho "{name} $*" >>"$CALLS"\n{text}')
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def run(self, *stages: str, status: int = 0, **variables: str) -> str:
        """The script's output for these stages, which end with this status."""
        environment = {
            **os.environ,
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(self._calls),
            "PYTHON": "python",
            "OUT": str(self.out),
            "CAPABILITY": "9.0",
            **variables,
        }
        self._calls.write_text("")
        command = [str(self.root / "benchmarks" / "gpu_check.sh"), *stages]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        said = ran.stdout + ran.stderr
        assert ran.returncode == status, said
        return said

    def calls(self, *beginnings: str) -> list[str]:
        """The command lines of the last run with these beginnings."""
        return [line for line in self._calls.read_text().splitlines() if line.startswith(beginnings)]

    def come_back(self) -> set[str]:
        return {str(path.relative_to(self.out)) for path in self.out.rglob("*") if path.is_file()}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def stages_of(text: str) -> list[str]:
    return re.findall("^== (.*)", text, re.MULTILINE)


@pytest.mark.skipif(_dispatch.cpu is None, reason="the compiled module is not built")
def test_each_of_the_selected_tests_is_there_and_needs_a_gpu() -> None:
    names = (ROOT / "benchmarks" / "gpu_sanitize.txt").read_text().splitlines()
    command = [sys.executable, "-m", "pytest", "--all", "--collect-only", "-q", "-m", "cuda", *names]
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    assert [line for line in found.stdout.splitlines() if "::" in line] == names


def test_all_stages_one_after_the_other(tree: Tree) -> None:
    tree.write("tests/test_good.py", GOOD)
    tree.write("benchmarks/gpu_sanitize.txt", "tests/test_good.py::test_good\n")
    said = tree.run("build", "selftest", "probe", "sweep", "test", "memcheck", "bench")
    assert stages_of(said) == ["build", "selftest", "probe", "sweep", "test", "memcheck", "bench"]
    calls = tree.calls("cmake", "nvcc", "compute-sanitizer", "python -m fastnn", "python -m benchmarks")
    assert [" ".join(call.split()[: 4 if call.startswith("python") else 1]) for call in calls] == [
        *["cmake"] * 3,
        "python -m fastnn selftest",
        "nvcc",
        "python -m benchmarks.gpu sweep",
        "python -m benchmarks.gpu_tests --logs",
        "python -m benchmarks.gpu_tests --logs",
        "compute-sanitizer",
        "python -m benchmarks.gpu bench",
    ]
    assert "a barrier takes no time" in said
    assert said.count("1 file: 1 passed in") == 2
    modules = {f"_cpu{SUFFIX}", f"_cuda{SUFFIX}", "modules.sha256"}
    assert tree.come_back() == modules | {
        *("summary.txt", "logs.tar.gz", "selftest.json", "sweep.json", "bench.json")
    }
    assert len(tree.come_back()) <= 8
    assert (tree.out / "summary.txt").read_text() == said
    with tarfile.open(tree.out / "logs.tar.gz") as logs:
        assert {"./build.log", "./probe.log", "./test/tests_test_good.py.log"} <= set(logs.getnames())


def test_the_self_test_comes_back_with_its_failures(tree: Tree) -> None:
    said = tree.run("selftest", status=1, FAILS="1")
    assert "the table" in said
    assert "failed: selftest (exit 1)" in said
    assert (tree.out / "selftest.json").read_text() == "{}\n"


def test_without_arguments_all_in_the_order_of_the_usage(tree: Tree) -> None:
    said = tree.run(status=1, LIMIT="0")
    assert re.findall(r"(\w+) \(no time left\)", said) == list(limits_of(tree))[:-2]
    assert not tree.calls("python -m", "cmake")
    assert "expected one of build selftest" in tree.run("biuld", status=2)


def seconds_of(tree: Tree, program: str) -> int:
    (call,) = tree.calls(f"python -m benchmarks.{program} ")
    return int(call.partition("--seconds ")[2].split()[0])


def test_what_is_left_of_the_time_is_what_a_stage_gets(tree: Tree) -> None:
    tree.write("tests/test_good.py", GOOD)
    tree.run("sweep")
    assert seconds_of(tree, "gpu") == 90 - 30
    tree.run("sweep", LIMIT="85")
    assert seconds_of(tree, "gpu") <= 85 - 30
    tree.run("bench", LIMIT="70")
    assert seconds_of(tree, "gpu") == 10
    tree.run("test", LIMIT="120")
    assert seconds_of(tree, "gpu_tests") <= 120 - 10
    assert "failed: sweep (no time left)" in tree.run("sweep", LIMIT="44", status=1)
    assert not tree.calls("python")


def limits_of(tree: Tree) -> dict[str, int]:
    return {name: int(limit) for name, limit in re.findall(r"  (\w+) +at most +(\d+) s", tree.run("--help"))}


def test_what_is_said_to_fit_into_ten_minutes_does(tree: Tree) -> None:
    limits = limits_of(tree)
    calls = re.findall("^  (build(?: [a-z]+)+)(, with the modules)?", tree.run("--help"), re.MULTILINE)
    assert len(calls) == 4
    for names, prebuilt in calls:
        stages = names.split()[1:] if prebuilt else names.split()
        assert sum(limits[name] for name in stages) <= 590


def test_modules_are_compiled_again_only_where_something_has_changed(tree: Tree) -> None:
    tree.run("build")
    assert tree.calls("cmake --build")
    tree.run("build")  # unchanged, where they were built
    assert not tree.calls("cmake")
    package = tree.root / "python" / "fastnn"
    brought = [f"_cpu{SUFFIX}", f"_cuda{SUFFIX}", "modules.sha256"]
    for name in brought:
        (package / name).unlink()
        shutil.copy(tree.out / name, package)
    assert "built from these sources" in tree.run("build")
    assert not tree.calls("cmake")
    changes = {
        "csrc/core/a header.h": "changed",
        "csrc/core/new.h": "",
        "cmake/cuda.cmake": "changed",
        f"python/fastnn/_cuda{SUFFIX}": "another",
        "python/fastnn/modules.sha256": "",
    }
    for name, text in changes.items():
        tree.write(name, text)
        tree.run("build")
        assert tree.calls("cmake --build"), name
    (package / brought[0]).unlink()
    tree.run("build")
    assert tree.calls("cmake --build")


def test_a_stage_that_fails_does_not_end_the_others(tree: Tree) -> None:
    tree.write("bin/nvcc", "#!/bin/sh\necho no such architecture >&2; exit 3\n")
    said = tree.run("probe", "sweep", status=1)
    assert "no such architecture" in said
    assert said.splitlines()[-1] == "failed: probe (exit 3)"
    assert tree.come_back() == {"summary.txt", "logs.tar.gz", "sweep.json"}


@pytest.mark.parametrize(("capability", "probed"), [("8.9", False), ("9.0", True), ("12.0", True)])
def test_the_probe_is_for_devices_that_have_clusters(tree: Tree, capability: str, probed: bool) -> None:
    said = tree.run("probe", CAPABILITY=capability)
    assert ("a barrier takes no time" in said) is probed
    assert (f"skipped: compute capability {capability} has no clusters" in said) is not probed
    assert bool(tree.calls("nvcc")) is probed


def test_the_probe_needs_a_device(tree: Tree) -> None:
    assert tree.run("probe", status=1, CAPABILITY="").endswith("failed: probe (exit 1)\n")


BAD = {
    "dies": """
import os, signal
def test_before(): pass
def test_dies(): os.kill(os.getpid(), signal.SIGSEGV)
def test_after(): pass
""",
    "warns": """
import warnings
import pytest
@pytest.mark.parametrize("i", range(3))
def test_warns(i): warnings.warn("a GPU brings this up")
def test_is_ignored(): warnings.warn("TrainStep runs eagerly: as pyproject.toml says")
""",
    "fails": """
import pytest
@pytest.mark.parametrize("i", range(3))
def test_fails(i): assert i is None, "first line\\nsecond line"
def test_skipped(): pytest.skip("not here")
""",
    # Torch after an illegal address: every CUDA call fails.
    "loses_the_device": """
import sys, types
lost = []
def synchronize():
    if lost: raise RuntimeError("an illegal memory access was encountered")
cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)
def test_loses(): lost.append(True)
def test_after(): synchronize()
""",
    "does_not_import": "import a_module_that_is_not_there",
}


def test_what_ends_a_test_file_does_not_end_the_others(tree: Tree) -> None:
    for name, text in BAD.items():
        tree.write(f"tests/test_{name}.py", text)
    said = tree.run("test", status=1, PYTEST_OPTIONS="--all")
    assert stages_of(said) == ["test"]
    table = dict(re.findall(r"^((?: +\d+){5}) +\d+  tests/test_(\w+)\.py$", said, re.MULTILINE))
    #                 passed, failed, skipped, died, not run
    assert {name: list(map(int, counts.split())) for counts, name in table.items()} == {
        "dies": [2, 0, 0, 1, 0],
        "warns": [4, 0, 0, 0, 0],
        "fails": [0, 3, 1, 0, 0],
        "loses_the_device": [1, 1, 0, 1, 0],
        "does_not_import": [0, 1, 0, 0, 0],
    }
    for line in (
        "died: tests/test_dies.py: SIGSEGV: tests/test_dies.py::test_dies",
        "the device was lost: tests/test_loses_the_device.py::test_loses",
        "warning 3x: UserWarning: a GPU brings this up (first in tests/test_warns.py::test_warns[0])",
        "failed 3x: tests/test_fails.py::test_fails[0]\n    AssertionError: first line\n      second line",
        "failed 1x: tests/test_loses_the_device.py::test_loses\n    an illegal memory access was encountered",
        "No module named 'a_module_that_is_not_there'",
        "5 files: 7 passed, 5 failed, 1 skipped, 2 died, 3 warnings in",
        "failed: test (exit 1)",
    ):
        assert line in said
    assert tree.come_back() == {"summary.txt", "logs.tar.gz"}


def test_nothing_but_skipped_tests_is_a_failure(tree: Tree) -> None:
    tree.write("tests/test_one.py", "import pytest\ndef test_skipped(): pytest.skip('no GPU')\n")
    assert "1 file: 1 skipped in" in tree.run("test", status=1, PYTEST_OPTIONS="--all")


HANGS = """
import time
def test_before(): pass
def test_hangs(): time.sleep(600)
def test_never(): pass
"""


def test_what_does_not_end_is_ended(tree: Tree) -> None:
    tree.write("tests/test_hangs.py", HANGS)
    for seconds in (4, 16, 64):  # of which a busy machine needs some to start
        said = tree.run("test", status=1, PYTEST_OPTIONS="--all", FILE_SECONDS=str(seconds))
        if "::test_hangs" in said:
            break
    assert f"died: tests/test_hangs.py: no end after {seconds} s: tests/test_hangs.py::test_hangs" in said
    assert "1 file: 1 passed, 1 died, 1 not run in" in said


SANITIZED = """
import os
import pytest
pytestmark = pytest.mark.cuda

@pytest.mark.parametrize("i", ["(a, b)", "c"])
def test_in_an_allocation_of_its_own(i):
    assert os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"

def test_step_graph():
    assert "PYTORCH_NO_CUDA_MEMORY_CACHING" not in os.environ
"""


def test_sanitizers_see_the_selected_tests(tree: Tree) -> None:
    tree.write("tests/test_one.py", SANITIZED)
    tree.write("tests/test_two.py", SANITIZED)
    names = ("test_in_an_allocation_of_its_own[(a, b)]", "test_step_graph")
    chosen = [f"tests/test_{file}.py::{name}" for file in ("one", "two") for name in names]
    tree.write("benchmarks/gpu_sanitize.txt", "\n".join(chosen) + "\n")
    said = tree.run("memcheck")
    assert "2 files: 2 passed in" in said
    assert len(tree.calls("compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode")) == 2
    tree.write("benchmarks/gpu_sanitize.txt", "tests/test_one.py::test_step_graph\n")
    said = tree.run("racecheck", status=1)
    assert "tests/test_one.py: ========= Error: a race between two threads" in said
    assert "1 file: 1 passed, 1 with findings in" in said
    assert said.splitlines()[-1] == "failed: racecheck (exit 1)"


@pytest.mark.long
@pytest.mark.skipif(_dispatch.cpu is None, reason="the compiled module is not built")
def test_the_runner_runs_the_suite_with_emulated_kernels(emulated: object, tmp_path: Path) -> None:
    files = ["tests/ops/test_gram_cuda.py", "tests/ops/test_cross_entropy_cuda.py"]
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_tests",
        "--logs",
        str(tmp_path),
        "--pytest",
        "-k emulated",
    ]
    ran = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^2 files: [1-9]\d* passed in", ran.stdout, re.MULTILINE)
