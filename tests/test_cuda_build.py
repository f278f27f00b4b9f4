"""Where the CUDA kernels are built: cmake's decisions with GPUs and compilers that are scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CMAKE = Path(__file__).resolve().parents[1] / "cmake"


def _tool(name: str) -> str | None:
    beside_python = Path(sys.executable).with_name(name)
    return str(beside_python) if beside_python.exists() else shutil.which(name)


pytestmark = [
    pytest.mark.skipif(not CMAKE.is_dir(), reason="the checkout is not here"),
    pytest.mark.skipif(_tool("cmake") is None or _tool("ninja") is None, reason="needs cmake and ninja"),
    pytest.mark.skipif(os.name != "posix", reason="the substitutes are scripts of a shell"),
]

Done = subprocess.CompletedProcess[str]


class Machine:
    """A machine on which cmake finds only the nvidia-smi and nvcc given here."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._programs = directory / "bin"

    def _script(self, name: str, text: str) -> None:
        path = self._programs / name
        path.write_text(f'#!/bin/sh\n: > "$0.was-run"\n{text}\n')
        path.chmod(0o755)

    def give(self, gpus: str | None, nvcc: str | None) -> None:
        """`gpus`: what nvidia-smi prints, or how it exits; `nvcc`: its version. None: there is none."""
        shutil.rmtree(self._programs, ignore_errors=True)
        self._programs.mkdir()
        if gpus is not None:
            self._script("nvidia-smi", gpus if gpus.startswith("exit") else f"printf '{gpus}'")
        if nvcc is not None:
            listed = "\\n".join(f"compute_{arch}" for arch in (75, 80, 86, 89, 90))
            version = f"echo 'Cuda compilation tools, release {nvcc}, V{nvcc}.1'"
            answers = f"--version) {version};; --list-gpu-arch) printf '{listed}';;"
            self._script("nvcc", f'case "$1" in {answers} *) exit 1;; esac')

    @property
    def was_run(self) -> set[str]:
        """Which of the two have been run."""
        return {path.stem for path in self._programs.glob("*.was-run")}

    def cmake(self, *arguments: str, path: str = "") -> Done:
        command = [str(_tool("cmake")), *arguments]
        environment = {"PATH": os.pathsep.join(filter(None, (str(self._programs), path)))}
        return subprocess.run(
            command, env=environment, cwd=self.directory, capture_output=True, text=True, check=False
        )

    def project(self, languages: str) -> str:
        """Write one that includes what is tested; returns the option that names ninja."""
        (self.directory / "CMakeLists.txt").write_text(
            f"cmake_minimum_required(VERSION 3.18)\nproject(p LANGUAGES {languages})\n"
            f'include("{CMAKE}/cuda.cmake")\n'
        )
        return f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"

    def choose(self, choice: str, archs: str = "") -> Done:
        options = f"-DFASTNN_CUDA={choice}", f"-DFASTNN_CUDA_ARCHS={archs}"
        return self.cmake(*options, "-P", str(CMAKE / "cuda_choice.cmake"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("gpus", "nvcc", "archs", "said"),
    [
        (None, "12.4", "", "not built, nvidia-smi finds no GPU (FASTNN_CUDA=ON"),
        ("exit 9", "12.4", "", "not built, nvidia-smi finds no GPU"),
        ("No devices were found\\n", "12.4", "", "not built, nvidia-smi finds no GPU"),
        ("[N/A]\\n", "12.4", "", "not built, nvidia-smi finds no GPU"),
        ("7.5\\n", "12.4", "", "not built, the GPU is of compute capability 7.5, and the kernels need 8.0"),
        ("9.0\\n", None, "", "not built, there is no nvcc"),
        ("9.0\\n", "11.8", "", "not built, nvcc is 11.8, and the kernels need 12.0"),
        ("9.0\\n", "nothing", "", "nvcc does not tell its version"),
        ("12.0\\n", "12.4", "", "not built, nvcc 12.4 does not know the GPU's compute capability 120"),
        ("9.0\\n", "12.4", "80;130-real", "not built, nvcc 12.4 does not know FASTNN_CUDA_ARCHS=130-real"),
        ("9.0\\n", "12.4", "", "built by nvcc 12.4 for 90-real (FASTNN_CUDA=OFF leaves them out)"),
        ("9.0\\n", "12.0", "", "built by nvcc 12.0 for 90-real"),
        ("8.6\\n7.5\\n8.6\\n12.0\\n8.0\\n", "12.4", "", "built by nvcc 12.4 for 86-real;80-real"),
        ("9.0\\n", "12.4", "80-real;90a;native", "built by nvcc 12.4 for 80-real;90a;native"),
    ],
)
def test_by_default_it_is_built_beside_a_gpu_only(
    machine: Machine, gpus: str | None, nvcc: str | None, archs: str, said: str
) -> None:
    """Whatever is found, the configuration continues, and one line says why."""
    machine.give(gpus, nvcc)
    done = machine.choose("AUTO", archs)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("gpus", "archs", "said"),
    [
        (None, "", "80-real;90"),
        ("7.5\\n", "", "80-real;90"),
        ("12.0\\n", "", "80-real;90"),
        ("8.9\\n", "", "89-real"),
        (None, "75", "75"),
    ],
)
def test_asked_for_it_is_built_anywhere(machine: Machine, gpus: str | None, archs: str, said: str) -> None:
    machine.give(gpus, "12.4")
    for choice in ("ON", "on", "1", "TRUE"):
        done = machine.choose(choice, archs)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"-- CUDA kernels: built by nvcc 12.4 for {said}"


@pytest.mark.parametrize(
    ("nvcc", "archs", "said"),
    [
        (None, "", "there is no nvcc on the PATH nor in CUDACXX"),
        ("11.8", "", "nvcc is 11.8"),
        ("12.4", "120", "does not know FASTNN_CUDA_ARCHS=120"),
    ],
)
def test_asked_for_it_fails_where_it_cannot_be(
    machine: Machine, nvcc: str | None, archs: str, said: str
) -> None:
    machine.give("9.0\\n", nvcc)
    done = machine.choose("ON", archs)
    assert done.returncode != 0
    assert said in " ".join(done.stderr.split())


def test_off_runs_no_detection(machine: Machine) -> None:
    machine.give("9.0\\n", "12.4")
    done = machine.choose("OFF")
    assert done.returncode == 0
    assert done.stdout.strip() == "-- CUDA kernels: not built, FASTNN_CUDA=OFF"
    assert machine.was_run == set()
    machine.choose("AUTO")
    assert machine.was_run == {"nvidia-smi", "nvcc"}


def test_another_choice_is_an_error(machine: Machine) -> None:
    machine.give("9.0\\n", "12.4")
    done = machine.choose("maybe")
    assert done.returncode != 0
    assert "FASTNN_CUDA=maybe: expected AUTO, ON or OFF" in done.stderr


def test_an_nvcc_that_does_not_compile(machine: Machine) -> None:
    """As with a host compiler that it refuses: by default the configuration continues without it."""
    machine.give("9.0\\n", "12.4")
    ninja = machine.project("NONE")
    for choice in ("AUTO", "ON"):
        done = machine.cmake("-S", ".", "-B", choice, "-G", "Ninja", ninja, f"-DFASTNN_CUDA={choice}")
        assert (done.returncode == 0) == (choice == "AUTO"), done.stderr
        assert ("nvcc does not compile and link (FASTNN_CUDA=ON" in done.stdout) == (choice == "AUTO")


@pytest.mark.long
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_an_nvcc_that_compiles_but_not_these_kernels(machine: Machine) -> None:
    """As a later or an older one might: a flag that spoils their names stands for it."""
    machine.give("9.0\\n", None)
    options = machine.project("CXX"), "-DCMAKE_CUDA_FLAGS=-Dfastnn=1"
    done = machine.cmake("-S", ".", "-B", "build", "-G", "Ninja", *options, path=os.environ["PATH"])
    assert done.returncode == 0, done.stderr
    assert "CUDA kernels: not built" in done.stdout
    assert "nvcc does not compile them" in done.stdout
