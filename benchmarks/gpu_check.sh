#!/usr/bin/env bash
# Builds fastnn on a machine with a GPU, tests it there and measures it: gpu_check.sh --help
set -uo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'END'
usage: benchmarks/gpu_check.sh [STAGE]...

Without stages all but the last two, in this order. Needs no network; torch with CUDA, CMake, ninja, pybind11 and
pytest must be installed, and nvcc and compute-sanitizer found on the PATH or in /usr/local/cuda/bin.

END
  stages | while read -r name limit _ what; do printf '  %-10s at most %3d s  %s\n' "$name" "$limit" "$what"; done
  cat <<'END'

Where a command may take ten minutes, these fit into one each:
  build selftest probe sweep test
  build memcheck racecheck, with the modules brought along
  build initcheck synccheck, with the modules brought along
  build bench

What comes back, never more than eight files in $OUT (default: build/gpu/out):
  _cpu.*.so, _cuda.*.so, modules.sha256   the modules; put into python/fastnn they are not built again, as long as
                                          modules.sha256 has the sums of these very modules, csrc/ and CMake's files
  summary.txt                             what is shown
  logs.tar.gz                             all that was said, each test file's output, the probe's figures
  selftest.json                           what each test of the self-test found
  sweep.json, bench.json                  what was measured

Variables: PYTHON (python3); OUT; LIMIT, the seconds for all stages together: the last is cut short, and those that
nothing is left for are named; JOBS, test files at a time (8); FILE_SECONDS, what one may take (120); TESTS (tests) and
PYTEST_OPTIONS (-m cuda), the tests of `test`; FASTNN_DATA_DIR, a folder with MNIST's four files.
END
}

# Name, seconds at most, lines shown, what it does.
stages() {
  cat <<'END'
build      180   8 compiles the modules, or takes those that were brought along
selftest    60  30 fastnn selftest: whether the kernels compute what they should
probe       30  30 times barriers of a cluster and reads between its blocks (benchmarks/cluster_probe.cu)
sweep       90  40 times fastnn's products beside cuBLAS, for the limits in python/fastnn/ops/_cuda_limits.py
test       220  90 the tests that need a GPU, each file in a process of its own
memcheck   240  40 benchmarks/gpu_sanitize.txt under compute-sanitizer: addresses
racecheck  240  40 the same: races in shared memory
bench      300 120 times all ops beside torch's, MNIST to 98% included
initcheck  240  40 as memcheck: memory that is read before it is written
synccheck  240  40 as memcheck: barriers that not all threads reach
END
}

export python=${PYTHON:-python3} out=${OUT:-build/gpu/out} work=build/gpu
export FASTNN_MIRRORS=${FASTNN_MIRRORS-} PATH=$PATH:/usr/local/cuda/bin
export PYTHONPATH=$PWD/python${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

# Checksums of the modules' sources and of the modules.
sums() {
  local suffix
  suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
  { find csrc cmake CMakeLists.txt -type f; ls python/fastnn/_{cpu,cuda}"$suffix" 2>/dev/null; } |
    LC_ALL=C sort | tr '\n' '\0' | xargs -0 sha256sum
}

do_build() {
  if [ "$(sums)" = "$(cat python/fastnn/modules.sha256 2>/dev/null)" ]; then
    echo "python/fastnn has modules that were built from these sources"
  else
    cmake -S . -B build/gpu-build -G Ninja -DCMAKE_BUILD_TYPE=Release -DFASTNN_CUDA=ON \
      -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" -DPython_EXECUTABLE="$(command -v "$python")" &&
      cmake --build build/gpu-build --target _cpu _cuda && cmake --install build/gpu-build --prefix python &&
      sums >python/fastnn/modules.sha256 || return 1
  fi
  cp $(sed -n 's/^[0-9a-f]*  \(python.*\)/\1/p' python/fastnn/modules.sha256) python/fastnn/modules.sha256 "$out" &&
    "$python" -c '
import torch
assert torch.cuda.is_available(), "torch finds no GPU"
print(torch.__version__, torch.cuda.get_device_name())
import fastnn
from fastnn import _cuda
print(fastnn.info())
why = _cuda.why_unusable(0)
assert not why, why'
}

do_selftest() { "$python" -m fastnn selftest --device cuda:0 --json >"$out/selftest.json"; }

do_probe() {
  local capability
  capability=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || return 1
  if [ "${capability%.*}" -lt 9 ]; then
    echo "skipped: compute capability $capability has no clusters of blocks, which come with 9.0"
    return 0
  fi
  nvcc -arch=sm_90 -std=c++17 -O3 -I csrc benchmarks/cluster_probe.cu -o "$work/cluster_probe" && "$work/cluster_probe"
}

# For each stage that uses the kernels through Python, whether or not they have passed `selftest`.
unproven() { env FASTNN_CUDA_UNPROVEN=1 "$@"; }

do_sweep() { unproven "$python" -m benchmarks.gpu sweep --seconds $((limit - 30)) --output "$out/sweep.json"; }

do_bench() { unproven "$python" -m benchmarks.gpu bench --seconds $((limit > 70 ? limit - 60 : 10)) --output "$out/bench.json"; }

# tests <name> <argument of benchmarks.gpu_tests>...
tests() {
  local name=$1
  shift
  unproven "$python" -m benchmarks.gpu_tests --logs "$work/$name" --jobs "${JOBS:-8}" --seconds $((limit - 10)) "$@"
}

# Word splitting is intended: TESTS may name several.
do_test() { tests test --pytest="${PYTEST_OPTIONS:--m cuda}" --file-seconds "${FILE_SECONDS:-120}" ${TESTS:-tests}; }

# sanitize <options of pytest> <tool> [<option of compute-sanitizer>]...: one tool over the selected tests.
sanitize() {
  local options=$1 tool=$2 chosen
  shift
  command -v compute-sanitizer || { echo "compute-sanitizer is not installed"; return 1; }
  mapfile -t chosen <benchmarks/gpu_sanitize.txt
  tests "$tool" --pytest="--all ${PYTEST_OPTIONS:--m cuda} $options" --file-seconds "$limit" \
    --sanitizer="--tool $*" "${chosen[@]}"
}

# These two check memory by allocations: each tensor gets one of its own, so nothing can be captured. API
# errors are left for the tests to judge.
do_memcheck() { PYTORCH_NO_CUDA_MEMORY_CACHING=1 sanitize "-k 'not step_graph'" memcheck --report-api-errors no; }
do_initcheck() { PYTORCH_NO_CUDA_MEMORY_CACHING=1 sanitize "-k 'not step_graph'" initcheck; }
do_racecheck() { sanitize "" racecheck; }
do_synccheck() { sanitize "" synccheck; }
export -f sums unproven tests sanitize $(compgen -A function do_)

# stage <name> <seconds> <lines>: runs it with a limit, keeps its output, shows the last lines, notes a failure.
stage() {
  local name=$1 lines=$3 start=$SECONDS
  export limit=$2
  echo "== $name"
  timeout --kill-after=5 "$limit" bash -c "do_$name" 2>&1 | tee "$work/$name.log" | tail -n "$lines"
  local status=${PIPESTATUS[0]}
  [ "$status" -eq 0 ] || failed+=("$name (exit $status)")
  echo "-- $name: $((SECONDS - start)) s"
  # After each stage: finished work survives whatever ends this script.
  tar -czf "$out/logs.tar.gz" --exclude=./out --exclude=./cluster_probe -C "$work" .
}

run() {
  local name limit lines left failed=()
  for name in "$@"; do
    read -r limit lines < <(stages | awk -v name="$name" '$1 == name { print $2, $3 }')
    left=$((${LIMIT:-86400} - SECONDS))
    if [ "$left" -lt 45 ]; then
      failed+=("$name (no time left)")
    else
      stage "$name" $((limit < left ? limit : left)) "$lines"
    fi
  done
  [ ${#failed[@]} -eq 0 ] || { printf 'failed: %s\n' "${failed[@]}"; return 1; }
}

known=" $(stages | awk '{ printf "%s ", $1 }')"
for name in "$@"; do
  case $name in
    -h | --help) usage; exit ;;
    *) [[ $known == *" $name "* ]] || { echo "unknown stage $name: expected one of$known" >&2; exit 2; } ;;
  esac
done
[ $# -gt 0 ] || set -- $(stages | awk '{ print $1 }' | head -n -2)
mkdir -p "$out" "$work"
run "$@" | tee "$out/summary.txt"
exit "${PIPESTATUS[0]}"
